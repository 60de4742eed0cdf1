//! Classic BPF from labels: instructions, branches of any distance, and the two ends of a program.
//!
//! A conditional jump reaches 255 instructions ahead and no jump goes back (kernel, `Documentation/networking/filter.rst`). Branches
//! that reach further get an unconditional jump beside them; ends of the program ("islands") are repeated on the way, so that
//! few branches need one. Pure; programs are built once at start.

/// One instruction, as the kernel's `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Class, size, mode, operation.
    pub code: u16,
    /// Instructions skipped when the condition holds.
    pub jt: u8,
    /// Instructions skipped when it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// Longest program that the kernel takes (BPF_MAXINSNS).
pub const MAX_INSTRUCTIONS: usize = 4_096;

/// After so many instructions the ends are repeated: within a branch's reach, and below 3 % of the program.
const ISLAND_EVERY: usize = 96;

/// Codes of the instructions in use (`linux/bpf_common.h`).
pub(super) mod code {
    #![allow(clippy::cast_possible_truncation)]
    use libc::*;
    pub(crate) const LD_B: u16 = (BPF_LD | BPF_B | BPF_IND) as u16;
    pub(crate) const LD_H: u16 = (BPF_LD | BPF_H | BPF_IND) as u16;
    pub(crate) const LD_W: u16 = (BPF_LD | BPF_W | BPF_IND) as u16;
    pub(crate) const LD_ABS_H: u16 = (BPF_LD | BPF_H | BPF_ABS) as u16;
    pub(crate) const LD_ABS_W: u16 = (BPF_LD | BPF_W | BPF_ABS) as u16;
    pub(crate) const LD_LEN: u16 = (BPF_LD | BPF_W | BPF_LEN) as u16;
    pub(crate) const LD_IMM: u16 = (BPF_LD | BPF_W | BPF_IMM) as u16;
    pub(crate) const LD_MEM: u16 = (BPF_LD | BPF_W | BPF_MEM) as u16;
    pub(crate) const LDX_IMM: u16 = (BPF_LDX | BPF_W | BPF_IMM) as u16;
    pub(crate) const ST: u16 = BPF_ST as u16;
    pub(crate) const ADD_K: u16 = (BPF_ALU | BPF_ADD | BPF_K) as u16;
    pub(crate) const ADD_X: u16 = (BPF_ALU | BPF_ADD | BPF_X) as u16;
    pub(crate) const SUB_X: u16 = (BPF_ALU | BPF_SUB | BPF_X) as u16;
    pub(crate) const AND_K: u16 = (BPF_ALU | BPF_AND | BPF_K) as u16;
    pub(crate) const LSH_K: u16 = (BPF_ALU | BPF_LSH | BPF_K) as u16;
    pub(crate) const RSH_K: u16 = (BPF_ALU | BPF_RSH | BPF_K) as u16;
    pub(crate) const JA: u16 = (BPF_JMP | BPF_JA) as u16;
    pub(crate) const JEQ: u16 = (BPF_JMP | BPF_JEQ | BPF_K) as u16;
    pub(crate) const JEQ_X: u16 = (BPF_JMP | BPF_JEQ | BPF_X) as u16;
    pub(crate) const JGT: u16 = (BPF_JMP | BPF_JGT | BPF_K) as u16;
    pub(crate) const JGE: u16 = (BPF_JMP | BPF_JGE | BPF_K) as u16;
    pub(crate) const JSET: u16 = (BPF_JMP | BPF_JSET | BPF_K) as u16;
    pub(crate) const RET_K: u16 = (BPF_RET | BPF_K) as u16;
    pub(crate) const RET_A: u16 = (BPF_RET | BPF_A) as u16;
    pub(crate) const TAX: u16 = (BPF_MISC | BPF_TAX) as u16;
    pub(crate) const TXA: u16 = (BPF_MISC | BPF_TXA) as u16;
}

/// A place to jump to, bound later than all jumps to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// Where a branch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// The next instruction.
    Next,
    /// A label.
    Place(Label),
    /// The end that takes the packet.
    Accept,
    /// The end that drops it.
    Reject,
}

#[derive(Clone, Copy, Debug)]
enum Item {
    Plain(Instruction),
    Branch { code: u16, k: u32, yes: To, no: To },
    Goto(To),
    Bind(Label),
    Island,
}

/// A program under construction.
#[derive(Debug)]
pub(super) struct Assembler {
    items: Vec<Item>,
    labels: usize,
    /// What the accepting end does.
    accept: Vec<Instruction>,
    since_island: usize,
}

impl Assembler {
    /// An empty program whose accepting end is `accept`.
    pub(super) fn new(accept: Vec<Instruction>) -> Self {
        Self { items: vec![], labels: 0, accept, since_island: 0 }
    }

    /// A label to be bound later.
    pub(super) fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels - 1)
    }

    /// Here the label is.
    pub(super) fn bind(&mut self, label: Label) {
        self.items.push(Item::Bind(label));
    }

    /// One instruction without a jump.
    pub(super) fn op(&mut self, code: u16, k: u32) {
        self.push(Item::Plain(plain(code, k)));
    }

    /// A conditional jump.
    pub(super) fn branch(&mut self, code: u16, k: u32, yes: To, no: To) {
        self.push(Item::Branch { code, k, yes, no });
    }

    /// An unconditional jump.
    pub(super) fn goto(&mut self, to: To) {
        self.push(Item::Goto(to));
    }

    /// Called where nothing falls through: repeats the ends when the last ones are far back.
    pub(super) fn island(&mut self) {
        if self.since_island >= ISLAND_EVERY {
            self.items.push(Item::Island);
            self.since_island = 0;
        }
    }

    fn push(&mut self, item: Item) {
        self.items.push(item);
        self.since_island += 1;
    }

    /// The program. Its length is for the caller to compare with [`MAX_INSTRUCTIONS`].
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        self.items.push(Item::Island);
        // Which branches need a jump beside them, for yes and for no. Lengthening one may push another out of reach, so this
        // goes on until nothing changes; flags are only ever set, so it ends.
        let mut far = vec![(false, false); self.items.len()];
        loop {
            let map = self.places(&far);
            let mut changed = false;
            for (i, item) in self.items.iter().enumerate() {
                let Item::Branch { yes, no, .. } = *item else { continue };
                let next = map.at[i] + 1;
                let reaches =
                    |to| map.find(to, next).is_none_or(|place| place - next <= usize::from(u8::MAX));
                let now = (far[i].0 || !reaches(yes), far[i].1 || !reaches(no));
                changed |= now != far[i];
                far[i] = now;
            }
            if !changed {
                return self.emit(&far, &map);
            }
        }
    }

    fn places(&self, far: &[(bool, bool)]) -> Map {
        let mut map = Map {
            at: Vec::with_capacity(self.items.len()),
            labels: vec![usize::MAX; self.labels],
            accepts: vec![],
            rejects: vec![],
        };
        let mut here = 0;
        for (item, far) in self.items.iter().zip(far) {
            map.at.push(here);
            match item {
                Item::Plain(_) | Item::Goto(_) => here += 1,
                Item::Branch { .. } => here += 1 + usize::from(far.0) + usize::from(far.1),
                Item::Bind(label) => map.labels[label.0] = here,
                Item::Island => {
                    map.accepts.push(here);
                    map.rejects.push(here + self.accept.len());
                    here += self.accept.len() + 1;
                }
            }
        }
        map
    }

    fn emit(&self, far: &[(bool, bool)], map: &Map) -> Vec<Instruction> {
        let mut out = vec![];
        for (item, &(far_yes, far_no)) in self.items.iter().zip(far) {
            let next = out.len() + 1;
            match *item {
                Item::Plain(instruction) => out.push(instruction),
                Item::Bind(_) => {}
                Item::Goto(to) => out.push(self.jump(to, next, map)),
                Item::Island => {
                    out.extend(&self.accept);
                    out.push(plain(code::RET_K, 0));
                }
                Item::Branch { code, k, yes, no } => {
                    let beside = usize::from(far_yes) + usize::from(far_no);
                    let skip = |to, far: bool, slot: usize| match (to, far) {
                        (_, true) => slot as u8,
                        (To::Next, false) => beside as u8,
                        (to, false) => (map.find(to, next).expect("not Next") - next) as u8,
                    };
                    out.push(Instruction {
                        code,
                        jt: skip(yes, far_yes, 0),
                        jf: skip(no, far_no, usize::from(far_yes)),
                        k,
                    });
                    for to in [far_yes.then_some(yes), far_no.then_some(no)].into_iter().flatten() {
                        let next = out.len() + 1;
                        out.push(self.jump(to, next, map));
                    }
                }
            }
        }
        out
    }

    /// An unconditional jump from the instruction before `next`; an end of one instruction is put there itself.
    fn jump(&self, to: To, next: usize, map: &Map) -> Instruction {
        match to {
            To::Reject => plain(code::RET_K, 0),
            To::Accept if self.accept.len() == 1 => self.accept[0],
            _ => plain(code::JA, map.find(to, next).map_or(0, |place| place - next) as u32),
        }
    }
}

/// Where everything stands.
struct Map {
    at: Vec<usize>,
    labels: Vec<usize>,
    accepts: Vec<usize>,
    rejects: Vec<usize>,
}

impl Map {
    /// The first place at or behind `next` that `to` names; `None` for the next instruction, wherever that is.
    fn find(&self, to: To, next: usize) -> Option<usize> {
        let first = |places: &[usize]| {
            let i = places.partition_point(|&place| place < next);
            *places.get(i).expect("the program ends with an island")
        };
        match to {
            To::Next => None,
            To::Place(label) => {
                let place = self.labels[label.0];
                assert!(place != usize::MAX && place >= next, "labels are bound behind the jumps to them");
                Some(place)
            }
            To::Accept => Some(first(&self.accepts)),
            To::Reject => Some(first(&self.rejects)),
        }
    }
}

/// An instruction without branches.
pub(super) const fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}
