//! The target host: smoltcp's TCP, one interface and socket for each connection, and in front of them what a host does
//! for a listening port: accept, refuse, forget. `app` has the service behind it.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};

use flow::record::{flag, kind};
use flow::{Endpoint, Returned, Seq, TcpFields, segment};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, Ipv4Address, Ipv6Address};

use crate::app::{App, Stream, Trouble};
use crate::dice::Dice;
use crate::flows::Flow;
use crate::oracle::{Broken, Oracle, Track};
use crate::scenario::Scenario;

thread_local! {
    /// Where smoltcp's generator of time stamps reads its clock, milliseconds.
    static CLOCK_MS: Cell<u32> = const { Cell::new(0) };
}

fn stamp() -> u32 {
    CLOCK_MS.get()
}

/// What an interface sends and receives.
struct Wire {
    rx: Option<Vec<u8>>,
    tx: VecDeque<Vec<u8>>,
    mtu: usize,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.rx.take()?), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

/// See `Net::next`.
const AGAIN_US: u64 = 5_000;

/// A packet on its way to a target.
pub(crate) struct Packet {
    pub(crate) track: usize,
    pub(crate) client: Endpoint,
    /// Number of the target.
    pub(crate) target: u16,
    pub(crate) tcp: TcpFields,
    /// A bit of it is not as it was.
    pub(crate) wrong: bool,
    /// From its IP header on.
    pub(crate) bytes: Vec<u8>,
}

/// One connection.
struct Conn {
    track: usize,
    client: Endpoint,
    target: u16,
    ts_val: u32,
    net: Option<Net>,
    app: App,
    wire: OnWire,
    due_us: u64,
}

/// What a target's TCP has said on one connection.
pub(crate) struct OnWire {
    /// The client's first number.
    pub(crate) isn: Seq,
    /// The target's own, and answer bytes that have left.
    pub(crate) iss: Option<Seq>,
    left: u32,
    /// Its last segment: one past its end, and what it acknowledged.
    last: (Seq, Seq),
}

impl OnWire {
    pub(crate) fn new(isn: Seq) -> Self {
        Self { isn, iss: None, left: 0, last: (Seq(0), Seq(0)) }
    }

    /// A segment leaves, on behalf of an application that has written so much.
    pub(crate) fn sends(&mut self, record: &Returned, written: u32, track: &mut Track) {
        let tcp = &record.tcp;
        let syn_or_fin = u32::from(tcp.flags & (flag::SYN | flag::FIN) != 0);
        self.last = (tcp.seq + record.payload_len + syn_or_fin, tcp.ack);
        if tcp.has(flag::SYN) {
            self.iss = Some(tcp.seq);
        } else if let Some(iss) = self.iss {
            let acked = tcp.ack.since(self.isn + 1).max(0) as u32;
            track.taken = track.taken.max(acked.min(track.sent));
            let end = (tcp.seq + record.payload_len).since(iss + 1).max(0) as u32;
            self.left = self.left.max(end.min(written));
        }
    }

    /// Answers that have left whole are known to the oracle.
    pub(crate) fn note_answers(&self, app: &mut App, track: &mut Track) {
        track.answered = track.answered.max(app.answered(self.left));
    }
}

struct Net {
    iface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    wire: Wire,
}

/// The host.
pub(crate) struct Target {
    conns: Vec<Conn>,
    live: HashMap<(Endpoint, u16), usize>,
    addresses: Vec<Endpoint>,
    dice: Dice,
    /// Answers for connections that it does not know.
    nobody: Net,
    scenario: Scenario,
    stamps_from: u32,
    /// Requests that made no sense to the application.
    pub(crate) garbled: u64,
}

/// A header on its way back, and the track that it belongs to.
pub(crate) type Back = (usize, Returned);

impl Target {
    pub(crate) fn new(scenario: &Scenario, addresses: Vec<Endpoint>) -> Self {
        let mut dice = Dice::new(scenario.seed, 21);
        let nobody = Net::new(scenario, &addresses, None, 0, scenario.start_us);
        let stamps_from = match scenario.wraps {
            true => {
                0u32.wrapping_sub((scenario.start_us / 1000) as u32).wrapping_sub(dice.below(3000) as u32)
            }
            false => dice.next() as u32,
        };
        Self {
            conns: Vec::new(),
            live: HashMap::new(),
            addresses,
            dice,
            nobody,
            scenario: scenario.clone(),
            stamps_from,
            garbled: 0,
        }
    }

    fn clock(&self, now_us: u64) {
        CLOCK_MS.set(((now_us / 1000) as u32).wrapping_add(self.stamps_from));
    }

    /// A packet arrives.
    pub(crate) fn arrive(
        &mut self,
        now_us: u64,
        packet: Packet,
        flows: &[Flow],
        oracle: &mut Oracle,
        back: &mut Vec<Back>,
    ) -> Result<Option<usize>, Broken> {
        let Packet { track, client, target, ref tcp, wrong, bytes } = packet;
        self.clock(now_us);
        let opens = tcp.has(flag::SYN) && !tcp.has(flag::ACK);
        if let Some(&id) = self.live.get(&(client, target)) {
            if !(opens && !wrong && self.takes_anew(id, tcp)) {
                if opens && !wrong {
                    self.challenge(id, tcp, back);
                }
                self.poll(now_us, id, Some(bytes), flows, oracle, back)?;
                return Ok(Some(id));
            }
            self.conns[id].net = None;
            self.live.remove(&(client, target));
        }
        if wrong {
            return Ok(None);
        }
        let trouble = if opens { self.draw_trouble(now_us) } else { Trouble::None };
        if !opens || trouble == Trouble::Refuse {
            if opens {
                oracle.troubled(track);
            }
            self.nobody.poll(now_us, Some(bytes));
            self.collect_nobody(track, back);
            return Ok(None);
        }
        let id = self.accept(now_us, track, client, target, tcp, trouble);
        if trouble != Trouble::None {
            oracle.troubled(track);
        }
        self.poll(now_us, id, Some(bytes), flows, oracle, back)?;
        Ok(Some(id))
    }

    /// Whether a SYN opens a new connection on a four-tuple that is known (RFC 6191; RFC 9293, section 3.10.7.4).
    fn takes_anew(&self, id: usize, tcp: &TcpFields) -> bool {
        let conn = &self.conns[id];
        let Some(net) = &conn.net else { return true };
        let over = matches!(net.socket().state(), State::TimeWait | State::Closed);
        let newer = Seq(tcp.ts_val).after(Seq(conn.ts_val)) || tcp.seq.after(conn.wire.isn + conn.app.taken);
        over && tcp.seq != conn.wire.isn && newer
    }

    /// A SYN in a connection that stands draws an acknowledgement (RFC 5961, section 4.2); smoltcp passes it over.
    fn challenge(&self, id: usize, tcp: &TcpFields, back: &mut Vec<Back>) {
        let conn = &self.conns[id];
        if conn.wire.iss.is_none() || tcp.seq == conn.wire.isn {
            return;
        }
        let (seq, ack) = conn.wire.last;
        let tcp = TcpFields { seq, ack, flags: flag::ACK, ..TcpFields::default() };
        let (client, target) = (conn.client, self.addresses[usize::from(conn.target)]);
        back.push((conn.track, Returned { kind: kind::TCP, tcp, client, target, ..Returned::default() }));
    }

    fn accept(
        &mut self,
        now_us: u64,
        track: usize,
        client: Endpoint,
        target: u16,
        tcp: &TcpFields,
        trouble: Trouble,
    ) -> usize {
        let seed = match self.scenario.wraps {
            true => near_wrap(&mut self.dice),
            false => self.dice.next(),
        };
        let net = Net::new(&self.scenario, &self.addresses, Some(target), seed, now_us);
        self.conns.push(Conn {
            track,
            client,
            target,
            ts_val: tcp.ts_val,
            net: Some(net),
            app: App::new(target == 1, trouble, self.dice.percent(50)),
            wire: OnWire::new(tcp.seq),
            due_us: u64::MAX,
        });
        let id = self.conns.len() - 1;
        self.live.insert((client, target), id);
        id
    }

    fn draw_trouble(&mut self, now_us: u64) -> Trouble {
        let since = now_us - self.scenario.start_us;
        if self.scenario.target.restart.is_some_and(|(at, down)| (at..at + down).contains(&since)) {
            return Trouble::Refuse;
        }
        if !self.dice.percent(self.scenario.target.trouble_percent) {
            return Trouble::None;
        }
        let after = self.dice.below(4) as u32;
        let stall = self.dice.size(20_000_000);
        self.dice.weighted(&[
            (1, Trouble::Refuse),
            (2, Trouble::CloseAfter(after)),
            (2, Trouble::ResetAfter(after)),
            (2, Trouble::ResetWithin(after)),
            (2, Trouble::Stall(after, stall)),
            (1, Trouble::Mute(after)),
        ])
    }

    /// The host forgets everything: a restart.
    pub(crate) fn forget(&mut self, oracle: &mut Oracle) {
        for conn in &mut self.conns {
            if conn.net.take().is_some() {
                oracle.troubled(conn.track);
            }
        }
        self.live.clear();
    }

    /// Looks after a connection: a packet, a timer, or both.
    pub(crate) fn poll(
        &mut self,
        now_us: u64,
        id: usize,
        packet: Option<Vec<u8>>,
        flows: &[Flow],
        oracle: &mut Oracle,
        back: &mut Vec<Back>,
    ) -> Result<(), Broken> {
        self.clock(now_us);
        let conn = &mut self.conns[id];
        let Some(net) = &mut conn.net else {
            conn.due_us = u64::MAX;
            return Ok(());
        };
        if packet.is_some() || net.due(now_us) <= now_us {
            net.poll(now_us, packet);
        }
        let socket = net.sockets.get_mut::<Socket>(net.handle);
        let acted = conn.app.work(now_us, socket, conn.track, flows, oracle)?;
        if acted {
            net.poll(now_us, None);
        }
        self.garbled += u64::from(std::mem::take(&mut conn.app.garbled_now));
        collect(conn, self.scenario.target.merges, oracle, back);
        let net = conn.net.as_mut().expect("it was there a moment ago");
        // A reset in SYN-RECEIVED takes a socket back to LISTEN: for the host that connection is over too.
        let over = match net.socket().state() {
            State::Closed => true,
            State::Listen => conn.wire.iss.is_some(),
            _ => false,
        };
        conn.due_us = match over {
            true => u64::MAX,
            false => net.next(now_us).min(conn.app.due_us().max(now_us + 1)),
        };
        if over {
            conn.net = None;
            if self.live.get(&(conn.client, conn.target)) == Some(&id) {
                self.live.remove(&(conn.client, conn.target));
            }
        }
        Ok(())
    }

    /// When a connection wants to be looked after next.
    pub(crate) fn due_us(&self, id: usize) -> u64 {
        self.conns[id].due_us
    }

    fn collect_nobody(&mut self, track: usize, back: &mut Vec<Back>) {
        while let Some(packet) = self.nobody.wire.tx.pop_front() {
            if let Some(record) = returned(&packet) {
                back.push((track, record));
            }
        }
    }
}

/// Takes what a connection has sent: headers for the way back, and the books of what has left.
fn collect(conn: &mut Conn, merges: bool, oracle: &mut Oracle, back: &mut Vec<Back>) {
    let Some(net) = &mut conn.net else { return };
    while let Some(packet) = net.wire.tx.pop_front() {
        let Some(record) = returned(&packet) else { continue };
        conn.wire.sends(&record, conn.app.written, &mut oracle.tracks[conn.track]);
        match back.last_mut() {
            Some((_, last)) if merges && continues(last, &record) => {
                last.payload_len += record.payload_len;
                last.segments += 1;
                last.tcp.flags |= record.tcp.flags;
            }
            _ => back.push((conn.track, record)),
        }
    }
    conn.wire.note_answers(&mut conn.app, &mut oracle.tracks[conn.track]);
}

/// Whether a segment continues the one before it, as a network card's driver sees it.
fn continues(last: &Returned, next: &Returned) -> bool {
    last.client == next.client
        && last.payload_len > 0
        && next.payload_len > 0
        && last.tcp.seq + last.payload_len == next.tcp.seq
        && last.tcp.ack == next.tcp.ack
        && !last.tcp.has(flag::PSH)
        && !last.tcp.has(flag::FIN)
        && !last.tcp.has(flag::SYN)
        && last.payload_len + next.payload_len < 65_000
}

/// The header of a packet as intercept hands it on.
pub(crate) fn returned(packet: &[u8]) -> Option<Returned> {
    let segment = segment::parse(packet, packet.len() as u32).ok()?;
    Some(Returned {
        tcp: segment.tcp,
        payload_len: segment.wire_payload_len,
        client: segment.dst,
        target: segment.src,
        sack: segment.sack,
        sack_count: segment.sack_count,
        ..Returned::default()
    })
}

impl Stream for Socket<'_> {
    fn may_send(&self) -> bool {
        Socket::may_send(self)
    }

    fn read(&mut self, each: &mut dyn FnMut(&[u8])) -> bool {
        let read = self.can_recv().then(|| {
            self.recv(|bytes| {
                each(bytes);
                (bytes.len(), ())
            })
        });
        read.is_some_and(|read| read.is_ok())
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.send_slice(bytes).unwrap_or(0)
    }

    fn ended(&mut self) -> bool {
        self.state() == State::CloseWait && !self.can_recv()
    }

    fn close(&mut self) {
        Socket::close(self);
    }

    fn abort(&mut self) {
        Socket::abort(self);
    }
}

fn instant(now_us: u64) -> Instant {
    Instant::from_micros(now_us as i64)
}

impl Net {
    /// An interface with the target's addresses and, for a connection, a listening socket.
    fn new(scenario: &Scenario, addresses: &[Endpoint], target: Option<u16>, seed: u64, now_us: u64) -> Self {
        let spec = &scenario.target;
        let mut wire = Wire { rx: None, tx: VecDeque::new(), mtu: usize::from(spec.mtu) };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut wire, instant(now_us));
        let address = match addresses[0].addr.as_v4() {
            Some(octets) => IpAddress::Ipv4(Ipv4Address::from(octets)),
            None => IpAddress::Ipv6(Ipv6Address::from(addresses[0].addr.0)),
        };
        iface.update_ip_addrs(|list| {
            list.push(IpCidr::new(address, if addresses[0].addr.is_v4() { 24 } else { 64 }))
                .expect("room for one address");
        });
        match address {
            IpAddress::Ipv4(v4) => iface.routes_mut().add_default_ipv4_route(v4).map(|_| ()),
            IpAddress::Ipv6(v6) => iface.routes_mut().add_default_ipv6_route(v6).map(|_| ()),
        }
        .expect("room for one route");
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let (rx, tx) = if target.is_some() { (spec.rx, spec.tx) } else { (1, 1) };
        let mut socket = Socket::new(SocketBuffer::new(vec![0; rx]), SocketBuffer::new(vec![0; tx]));
        if let Some(target) = target {
            socket.listen(addresses[usize::from(target)].port).expect("a port other than 0");
            socket.set_nagle_enabled(spec.nagle);
            socket.set_ack_delay((spec.ack_delay_us > 0).then(|| Duration::from_micros(spec.ack_delay_us)));
            if spec.stamps {
                socket.set_tsval_generator(Some(stamp));
            }
        }
        let handle = sockets.add(socket);
        Self { iface, sockets, handle, wire }
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn poll(&mut self, now_us: u64, packet: Option<Vec<u8>>) {
        self.wire.rx = packet;
        self.iface.poll(instant(now_us), &mut self.wire, &mut self.sockets);
    }

    /// When its TCP, which has just done all it could, wants to be looked after next: at once means that it waits for
    /// something else.
    fn next(&mut self, now_us: u64) -> u64 {
        match self.due(now_us) {
            due if due <= now_us => now_us + AGAIN_US,
            due => due,
        }
    }

    /// When its TCP has something to do.
    fn due(&mut self, now_us: u64) -> u64 {
        match self.iface.poll_at(instant(now_us), &self.sockets) {
            Some(at) => at.total_micros().max(0) as u64,
            None => u64::MAX,
        }
    }
}

/// A seed of smoltcp's generator with which the second number drawn (the first is not of TCP) lies near the wrap: it is
/// the connection's initial sequence number.
fn near_wrap(dice: &mut Dice) -> u64 {
    for _ in 0..1 << 20 {
        let seed = dice.next();
        let mut state = seed;
        let mut draw = || {
            state = state.wrapping_mul(0xbb2e_fcec_3c39_611d).wrapping_add(0x7590_ef39);
            (state >> (29 - (state >> 61))) as u32
        };
        draw();
        if draw() > 0u32.wrapping_sub(20_000) {
            return seed;
        }
    }
    dice.next()
}
