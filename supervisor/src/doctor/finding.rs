//! What one check found: on which host, how it was seen, what is wrong, and the command that mends it, on the host where
//! it must be typed. Every check ends in at least one of these.

use flow::named_enum;
use serde::Serialize;

/// Whose the checked thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Host {
    /// The production host.
    Online,
    /// Where intercept runs.
    Intercept,
    /// The service under test.
    Target,
    /// The way of a SYN and its answer over all three.
    Probe,
    /// A run that goes on.
    Run,
}

impl Host {
    /// In the first column.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Intercept => "intercept",
            Self::Target => "target",
            Self::Probe => "probe",
            Self::Run => "run",
        }
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// All is well.
    Ok,
    /// No obstacle, but worth knowing.
    Warning,
    /// Nothing arrives, or not what should, as long as this is so.
    Failed,
    /// Not looked at: it needs something that is missing.
    Skipped,
}

impl Outcome {
    /// In the third column.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warn",
            Self::Failed => "FAIL",
            Self::Skipped => "-",
        }
    }
}

named_enum! {
    /// What is wrong, for programs.
    pub(crate) enum Fault {
        /// Packet sockets may not be opened.
        NoCapability => "no_capability",
        /// The kernel has no guard, for want of nft, of rights or of features.
        NoGuard => "no_guard",
        /// `-i` names an interface that is not there.
        NoInterface => "no_interface",
        /// An interface is down.
        InterfaceDown => "interface_down",
        /// Nothing listens at the mapped online port.
        OnlinePort => "wrong_online_port",
        /// Client packets come, but on another interface.
        WrongInterface => "wrong_interface",
        /// Client packets come, but `--net`, `--not-net` or `-F` takes none of them.
        FilteredOut => "filtered_out",
        /// No client packet came.
        NoTraffic => "no_traffic",
        /// The kernel had no room for captured frames.
        CaptureDrops => "capture_drops",
        /// There is no route, or one that refuses.
        NoRoute => "no_route",
        /// The next hop does not answer for its address.
        NextHopSilent => "next_hop_silent",
        /// The target is one that is refused.
        BadTarget => "bad_target",
        /// The client range holds addresses of a real network.
        PoolInUse => "pool_in_use",
        /// A rule of this host's firewall drops what is sent.
        LocalFirewall => "local_firewall",
        /// The clock was set while it was watched.
        ClockStepped => "clock_stepped",
        /// Nobody listens where intercept should.
        NoIntercept => "no_intercept",
        /// An intercept answers, but at another port.
        InterceptPort => "wrong_intercept_port",
        /// Connections to intercept are swallowed.
        InterceptFirewall => "intercept_firewall",
        /// Intercept's host does not answer.
        InterceptHost => "intercept_host_down",
        /// Another program listens there.
        NotTcptwin => "not_tcptwin",
        /// The two ends speak different versions.
        Version => "version",
        /// The two ends hold different keys.
        WrongKey => "wrong_key",
        /// One end has a key and the other does not.
        KeyMode => "key_mode",
        /// The client range is another instance's.
        PoolTaken => "pool_taken",
        /// Intercept's device does not have the route of the client range.
        PoolNotRouted => "pool_not_routed",
        /// Intercept does not watch the target.
        TargetUnknown => "target_unknown_to_intercept",
        /// Intercept says no for another reason.
        InterceptRefuses => "intercept_refuses",
        /// Nobody listens at the target's port.
        TargetRefuses => "target_refuses",
        /// The target does not answer this host either.
        TargetSilent => "target_silent",
        /// Somebody on the way refuses what is sent to the target.
        TargetRejects => "target_rejects",
        /// The SYN left and no answer came to intercept.
        AnswerUnseen => "answer_unseen",
        /// Handshakes pass, what follows does not.
        SecondPacketLost => "second_packet_lost",
        /// Short packets pass, long ones do not.
        PathMtu => "path_mtu",
        /// The return channel broke while the probe was on its way.
        ChannelBroke => "channel_broke",
        /// The target has no route for the clients.
        TargetNoRoute => "target_no_route",
        /// The target sends the answers to another host.
        TargetWrongRoute => "target_wrong_route",
        /// The target drops what the clients send by its reverse path.
        TargetReversePath => "target_reverse_path",
        /// The target refuses connections for want of room.
        TargetBusy => "target_busy",
        /// A rule of the target's firewall drops what the clients send.
        TargetFirewall => "target_firewall",
        /// This host passes answers on.
        Forwarding => "forwarding",
        /// A rule of intercept's host drops connections to its port.
        ListenFirewall => "listen_firewall",
        /// Intercept sees nothing of the target.
        NothingSeen => "nothing_seen",
        /// Sessions of the run fail.
        SessionsFail => "sessions_fail",
    }
}

impl Serialize for Fault {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A command, and where to type it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Remedy {
    /// When it is the right one; empty for the first thing to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) when: String,
    /// The host, as a person calls it.
    pub(crate) on: String,
    /// What to type.
    pub(crate) command: String,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// Whose it is.
    pub(crate) host: Host,
    /// What was looked at.
    pub(crate) check: String,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// What is wrong, for programs; none where nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fault: Option<Fault>,
    /// What was seen, in a few words.
    pub(crate) seen: String,
    /// What is wrong and what that means, as sentences.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) wrong: String,
    /// What follows in lines of its own; programs find it elsewhere.
    #[serde(skip)]
    pub(crate) lines: Vec<String>,
    /// What mends it, the likeliest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) remedies: Vec<Remedy>,
}

impl Finding {
    /// All is well.
    pub(crate) fn ok(host: Host, check: impl Into<String>, seen: impl Into<String>) -> Self {
        Self::new(host, check.into(), Outcome::Ok, None, seen.into())
    }

    /// No obstacle, but worth knowing.
    pub(crate) fn warning(
        host: Host,
        check: impl Into<String>,
        fault: Fault,
        seen: impl Into<String>,
    ) -> Self {
        Self::new(host, check.into(), Outcome::Warning, Some(fault), seen.into())
    }

    /// An obstacle.
    pub(crate) fn failed(
        host: Host,
        check: impl Into<String>,
        fault: Fault,
        seen: impl Into<String>,
    ) -> Self {
        Self::new(host, check.into(), Outcome::Failed, Some(fault), seen.into())
    }

    /// Not looked at, and why.
    pub(crate) fn skipped(host: Host, check: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(host, check.into(), Outcome::Skipped, None, why.into())
    }

    /// With what it means.
    #[must_use]
    pub(crate) fn because(mut self, wrong: impl Into<String>) -> Self {
        self.wrong = wrong.into();
        self
    }

    /// With lines of its own.
    #[must_use]
    pub(crate) fn after(mut self, lines: impl Iterator<Item = String>) -> Self {
        self.lines.extend(lines);
        self
    }

    /// With a command.
    #[must_use]
    pub(crate) fn mend(self, on: impl Into<String>, command: impl Into<String>) -> Self {
        self.mend_if("", on, command)
    }

    /// With a command for a case.
    #[must_use]
    pub(crate) fn mend_if(
        mut self,
        when: impl Into<String>,
        on: impl Into<String>,
        command: impl Into<String>,
    ) -> Self {
        self.remedies.push(Remedy { when: when.into(), on: on.into(), command: command.into() });
        self
    }

    const fn new(host: Host, check: String, outcome: Outcome, fault: Option<Fault>, seen: String) -> Self {
        Self {
            host,
            check,
            outcome,
            fault,
            seen,
            wrong: String::new(),
            lines: Vec::new(),
            remedies: Vec::new(),
        }
    }
}
