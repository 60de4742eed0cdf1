//! The rules of this host's firewall that can drop a packet, by the hook where it would meet them. Read from `nft list ruleset`,
//! which shows iptables' rules too where those are nftables underneath, else from `iptables-save`. What a rule does to one
//! packet is the kernel's to know: these are suspects, for when a packet is known to be missing.

use super::tools;

/// A rule, or a chain's policy, that drops or refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suspect {
    /// `inet filter output`, or the chain's name alone for iptables.
    pub(crate) chain: String,
    /// As it is written.
    pub(crate) rule: String,
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
    /// Whole rules, and `policy drop`.
    rules: Vec<String>,
}

/// Tables of our own: a run's guard, which lets through what is for a target, and intercept's, which drops what would go on.
const OURS: [&str; 2] = ["tcptwin_", "blackhole_tcptwin_"];

impl Rules {
    /// Asks the tools.
    pub(crate) fn read() -> Self {
        match tools::asked("nft", &["-s", "list", "ruleset"]) {
            Some(text) => Self { chains: of_nft(&text), readable: true },
            None => {
                let mut rules = Self::default();
                for (program, v4) in [("iptables-save", true), ("ip6tables-save", false)] {
                    if let Some(text) = tools::asked(program, &[]) {
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
                for rule in &chain.rules {
                    if drops(rule) {
                        let name = match chain.tool {
                            Tool::Nft => format!("{} {}", chain.table, chain.name),
                            Tool::Iptables { .. } => chain.name.clone(),
                        };
                        found.push(Suspect { chain: name, rule: rule.clone(), tool: chain.tool });
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
                        chain.rules.push("policy drop".to_owned());
                    }
                }
                None if !line.is_empty() => chain.rules.push(line.to_owned()),
                None => {}
            }
        }
    }
    chains
}

/// `iptables-save`: `*table`, `:CHAIN POLICY`, `-A CHAIN RULE`. Built-in chains are named like their hooks.
fn of_iptables(text: &str, v4: bool) -> Vec<Chain> {
    let tool = Tool::Iptables { v4 };
    let mut chains: Vec<Chain> = Vec::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if let Some((name, rest)) = line.strip_prefix(':').and_then(|rest| rest.split_once(' ')) {
            let policy = rest.split(' ').next().unwrap_or_default();
            let rules = if policy == "DROP" { vec!["policy DROP".to_owned()] } else { Vec::new() };
            let hook = (policy != "-").then(|| name.to_lowercase());
            chains.push(Chain { tool, table: table.clone(), name: name.to_owned(), hook, rules });
        } else if let Some((name, _)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' '))
            && let Some(chain) = chains.iter_mut().find(|chain| chain.name == name && chain.table == table)
        {
            chain.rules.push(line.to_owned());
        }
    }
    chains
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
    fn the_older_tool_is_understood_too() {
        let text = "*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT DROP [0:0]\n:MINE - [0:0]\n-A OUTPUT -j MINE\n-A MINE -s 198.18.0.0/15 -j REJECT --reject-with icmp-port-unreachable\n-A INPUT -p tcp -j ACCEPT\nCOMMIT\n";
        let rules = Rules { chains: of_iptables(text, true), readable: true };
        let out = rules.suspects(&["output"]);
        assert_eq!(out.iter().map(|one| one.chain.as_str()).collect::<Vec<_>>(), ["OUTPUT", "MINE"]);
        assert_eq!(out[1].exception("", "-d 10.0.3.2"), "iptables -I MINE -d 10.0.3.2 -j ACCEPT");
        assert!(rules.suspects(&["input"]).is_empty());
    }
}
