//! What the bytes of a region mean to this program, beyond where they stand (`shm`'s layout hash): two programs that agree in
//! both can follow one another on a region, by adoption or upgrade. Made of the names and sizes themselves, so that nobody
//! has to remember to raise a number when a counter or a field is added.

use flow::{Captured, Inject, Returned};

/// One number for it.
pub(crate) fn of_this_program() -> u64 {
    let mut text = format!("arena {:x}", session::FORMAT);
    for size in
        [size_of::<Captured>(), size_of::<Inject>(), size_of::<Returned>(), session::Table::SLOT_BYTES]
    {
        text += &format!(" {size}");
    }
    let mut add = |names: Vec<&'static str>| {
        text += "\n";
        text += &names.join(" ");
    };
    add(flow::Drop::ALL.iter().map(|one| one.name()).collect());
    add(session::Count::ALL.iter().map(|one| one.name()).collect());
    add(shard_worker::Gauge::ALL.iter().map(|one| one.name()).collect());
    add(shard_worker::WorkerCount::ALL.iter().map(|one| one.name()).collect());
    add(shard_worker::Latency::ALL.iter().map(|one| one.name()).collect());
    add(capturer::Count::ALL.iter().map(|one| one.name()).collect());
    add(injector::Count::ALL.iter().map(|one| one.name()).collect());
    add(injector::Verdict::ALL.iter().map(|one| one.name()).collect());
    add(injector::ReturnCount::ALL.iter().map(|one| one.name()).collect());
    add(injector::InterceptCount::ALL.iter().map(|one| one.name()).collect());
    rapidhash::v3::rapidhash_v3(text.as_bytes())
}
