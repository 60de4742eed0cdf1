//! The rules of this host's firewall that can drop a packet, by the hook where it would meet them. Read from `nft list ruleset`,
//! which shows iptables' rules too where those are nftables underneath, else from `iptables-save`. What a rule does to one
//! packet is the kernel's to know: these are suspects, for when a packet is known to be missing, and what a rule counts meanwhile tells
//! which of them it was.

use super::tools;

/// A rule, or a chain's policy, that drops or refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suspect {
    /// `inet filter output`, or the chain's name alone for iptables.
    pub(crate) chain: String,
    /// As it is written, without what it counted.
    pub(crate) rule: String,
    /// Packets that it has met, where it counts.
    pub(crate) packets: Option<u64>,
    /// The tool that wrote it.
    tool: Tool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Nft,
    Iptables { v4: bool },
}

/// All that was read.
#[derive(Default)]
pub(crate) struct Rules {
    chains: Vec<Chain>,
    /// Something could be read at all.
    readable: bool,
}

#[derive(Debug)]
struct Chain {
    tool: Tool,
    /// `inet filter`.
    table: String,
    name: String,
    hook: Option<String>,
    /// Whole rules, and `policy drop`; with what they counted.
    rules: Vec<(String, Option<u64>)>,
}

/// Tables of our own: a run's guard, which lets through what is for a target, and intercept's, which drops what would go on.
const OURS: [&str; 2] = ["tcptwin_", "blackhole_tcptwin_"];

impl Rules {
    /// Asks the tools.
    pub(crate) fn read() -> Self {
        match tools::asked("nft", &["list", "ruleset"]) {
            Some(text) => Self { chains: of_nft(&text), readable: true },
            None => {
                let mut rules = Self::default();
                for (program, v4) in [("iptables-save", true), ("ip6tables-save", false)] {
                    if let Some(text) = tools::asked(program, &["-c"]) {
                        rules.chains.extend(of_iptables(&text, v4));
                        rules.readable = true;
                    }
                }
                rules
            }
        }
    }

    /// Whether there was anybody to ask.
    pub(crate) const fn readable(&self) -> bool {
        self.readable
    }

    /// What can drop a packet at one of these hooks, chains that are jumped to included.
    pub(crate) fn suspects(&self, hooks: &[&str]) -> Vec<Suspect> {
        let mut found = Vec::new();
        let hooked = |chain: &&Chain| chain.hook.as_deref().is_some_and(|hook| hooks.contains(&hook));
        for base in self.chains.iter().filter(hooked) {
            let mut open = vec![base];
            let mut seen: Vec<&str> = Vec::new();
            while let Some(chain) = open.pop() {
                if seen.contains(&chain.name.as_str()) {
                    continue;
                }
                seen.push(&chain.name);
                for (rule, packets) in &chain.rules {
                    if drops(rule) {
                        let name = match chain.tool {
                            Tool::Nft => format!("{} {}", chain.table, chain.name),
                            Tool::Iptables { .. } => chain.name.clone(),
                        };
                        found.push(Suspect {
                            chain: name,
                            rule: rule.clone(),
                            packets: *packets,
                            tool: chain.tool,
                        });
                    }
                    let next = jumps(rule).and_then(|to| {
                        self.chains.iter().find(|other| {
                            other.name == to && other.table == chain.table && other.tool == chain.tool
                        })
                    });
                    open.extend(next);
                }
            }
        }
        found
    }
}

impl Suspect {
    /// The command that lets packets pass before this rule; the match in the words of each tool.
    pub(crate) fn exception(&self, nft: &str, iptables: &str) -> String {
        match self.tool {
            Tool::Nft => format!("nft insert rule {} {nft} accept", self.chain),
            Tool::Iptables { v4: true } => format!("iptables -I {} {iptables} -j ACCEPT", self.chain),
            Tool::Iptables { v4: false } => format!("ip6tables -I {} {iptables} -j ACCEPT", self.chain),
        }
    }

    /// How many packets it met since an earlier look.
    pub(crate) fn met_since(&self, earlier: &[Self]) -> u64 {
        let before = earlier.iter().find(|one| (&one.chain, &one.rule) == (&self.chain, &self.rule));
        let count = |one: &Self| one.packets.unwrap_or(0);
        count(self).saturating_sub(before.map_or(0, count))
    }

    /// For a sentence.
    pub(crate) fn words(&self) -> String {
        format!("`{}` in chain {}", self.rule, self.chain)
    }
}

/// The first suspects in words.
pub(crate) fn named(suspects: &[Suspect]) -> String {
    let mut words: Vec<String> = suspects.iter().take(3).map(Suspect::words).collect();
    if suspects.len() > 3 {
        words.push(format!("and {} more", suspects.len() - 3));
    }
    words.join(", ")
}

fn drops(rule: &str) -> bool {
    rule.split_whitespace().any(|word| matches!(word, "drop" | "reject" | "DROP" | "REJECT"))
}

fn jumps(rule: &str) -> Option<&str> {
    let mut words = rule.split_whitespace();
    words.find(|word| matches!(*word, "jump" | "goto" | "-j" | "-g"))?;
    words.next()
}

/// `nft list ruleset`: tables hold chains hold rules, one a line, each level with braces of its own.
fn of_nft(text: &str) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    let (mut table, mut inside) = (String::new(), false);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ").and_then(|rest| rest.strip_suffix(" {")) {
            (table, inside) = (name.to_owned(), false);
        } else if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            inside =
                !table.split(' ').nth(1).is_some_and(|name| OURS.iter().any(|ours| name.starts_with(ours)));
            if inside {
                let (name, table) = (name.to_owned(), table.clone());
                chains.push(Chain { tool: Tool::Nft, table, name, hook: None, rules: Vec::new() });
            }
        } else if line == "}" {
            inside = false;
        } else if inside && let Some(chain) = chains.last_mut() {
            match line.strip_prefix("type ") {
                Some(head) => {
                    let mut words = head.split([' ', ';']);
                    chain.hook =
                        words.find(|word| *word == "hook").and_then(|_| words.next()).map(str::to_owned);
                    if line.contains("policy drop") {
                        chain.rules.push(("policy drop".to_owned(), None));
                    }
                }
                None if !line.is_empty() => chain.rules.push(uncounted(line)),
                None => {}
            }
        }
    }
    chains
}

/// `... counter packets 3 bytes 180 drop`: the rule as it was written, and what it counted.
fn uncounted(rule: &str) -> (String, Option<u64>) {
    let split = rule.split_once(" packets ").and_then(|(head, rest)| {
        let (packets, rest) = rest.split_once(" bytes ")?;
        let (_, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        Some((format!("{head} {tail}").trim_end().to_owned(), Some(packets.parse().ok()?)))
    });
    split.filter(|(rule, _)| rule.contains("counter")).unwrap_or_else(|| (rule.to_owned(), None))
}

/// `iptables-save -c`: `*table`, `:CHAIN POLICY [3:180]`, `[3:180] -A CHAIN RULE`. Built-in chains are named like their hooks.
fn of_iptables(text: &str, v4: bool) -> Vec<Chain> {
    let tool = Tool::Iptables { v4 };
    let mut chains: Vec<Chain> = Vec::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if let Some((name, rest)) = line.strip_prefix(':').and_then(|rest| rest.split_once(' ')) {
            let policy = rest.split(' ').next().unwrap_or_default();
            let drops = policy == "DROP";
            let rules = if drops { vec![("policy DROP".to_owned(), counted(rest))] } else { Vec::new() };
            let hook = (policy != "-").then(|| name.to_lowercase());
            chains.push(Chain { tool, table: table.clone(), name: name.to_owned(), hook, rules });
        } else if let (packets, rule) = (counted(line), line.find("-A ").map_or("", |at| &line[at..]))
            && let Some((name, _)) = rule.strip_prefix("-A ").and_then(|rest| rest.split_once(' '))
            && let Some(chain) = chains.iter_mut().find(|chain| chain.name == name && chain.table == table)
        {
            chain.rules.push((rule.to_owned(), packets));
        }
    }
    chains
}

/// The packets of `[3:180]`.
fn counted(text: &str) -> Option<u64> {
    text.split_once('[')?.1.split_once(':')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NFT: &str = "table inet filter {\n\tset s {\n\t\ttype ipv4_addr\n\t}\n\n\tchain output {\n\t\ttype filter hook output priority filter; policy accept;\n\t\toifname \"lo\" accept\n\t\tjump forged\n\t}\n\n\tchain forged {\n\t\tip saddr 198.18.0.0/15 counter drop\n\t}\n\n\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t\ttcp dport 22 accept\n\t}\n}\ntable inet tcptwin_default {\n\tchain guard {\n\t\ttype filter hook output priority 300; policy accept;\n\t\tip saddr 198.18.0.0/20 drop\n\t}\n}\n";

    #[test]
    fn rules_are_found_by_their_hook_also_behind_a_jump() {
        let rules = Rules { chains: of_nft(NFT), readable: true };
        let out = rules.suspects(&["output", "postrouting"]);
        assert_eq!(out.len(), 1, "ours is none: {out:?}");
        assert_eq!(out[0].chain, "inet filter forged");
        assert_eq!(
            out[0].exception("ip daddr 10.0.3.2", "-d 10.0.3.2"),
            "nft insert rule inet filter forged ip daddr 10.0.3.2 accept"
        );
        let input = rules.suspects(&["input"]);
        assert_eq!(named(&input), "`policy drop` in chain inet filter input");
        assert!(rules.suspects(&["forward"]).is_empty());
    }

    #[test]
    fn what_a_rule_counts_is_not_of_its_words_and_tells_which_one_it_was() {
        let nft =
            |packets: u32| NFT.replace("counter drop", &format!("counter packets {packets} bytes 60 drop"));
        let at = |packets| Rules { chains: of_nft(&nft(packets)), readable: true }.suspects(&["output"]);
        let (before, after) = (at(3), at(7));
        assert_eq!(
            (before[0].rule.as_str(), before[0].packets),
            ("ip saddr 198.18.0.0/15 counter drop", Some(3))
        );
        assert_eq!((after[0].met_since(&before), before[0].met_since(&after)), (4, 0));
        assert_eq!(uncounted("tcp dport 22 counter packets 9 bytes 540").0, "tcp dport 22 counter");
        assert_eq!(uncounted("log prefix \"a packets b\" drop").1, None);
        let old = "*filter\n:INPUT DROP [5:300]\n[2:120] -A INPUT -s 198.18.0.0/15 -j DROP\nCOMMIT\n";
        let old = Rules { chains: of_iptables(old, true), readable: true }.suspects(&["input"]);
        assert_eq!((old[0].packets, old[1].packets), (Some(5), Some(2)));
        assert_eq!(old[1].rule, "-A INPUT -s 198.18.0.0/15 -j DROP");
    }

    #[test]
    fn the_older_tool_is_understood_too() {
        let text = "*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT DROP [0:0]\n:MINE - [0:0]\n-A OUTPUT -j MINE\n-A MINE -s 198.18.0.0/15 -j REJECT --reject-with icmp-port-unreachable\n-A INPUT -p tcp -j ACCEPT\nCOMMIT\n";
        let rules = Rules { chains: of_iptables(text, true), readable: true };
        let out = rules.suspects(&["output"]);
        assert_eq!(out.iter().map(|one| one.chain.as_str()).collect::<Vec<_>>(), ["OUTPUT", "MINE"]);
        assert_eq!(out[1].exception("", "-d 10.0.3.2"), "iptables -I MINE -d 10.0.3.2 -j ACCEPT");
        assert!(rules.suspects(&["input"]).is_empty());
    }
}
