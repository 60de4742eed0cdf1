//! The recorder, thread and all, on a real disk that is full, and on one that gets room again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::scratch::Scratch;
use lab::story::{Story, step};
use lab::wait;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use recorder::{Amount, Figure, Intake, Options, Owner, Recorder, Tally};
use trace::Reader;

const STORIES: &[Story] = &[
    ("a_full_disk_costs_packets_and_nothing_else", 60, || a_full_disk(false)),
    ("a_full_disk_under_zstd", 60, || a_full_disk(true)),
    ("keep_makes_room_on_a_small_disk", 60, keep_makes_room_on_a_small_disk),
];

fn main() -> ExitCode {
    lab::story::run_all(STORIES, &[])
}

/// A disk of 1 MiB that nobody else sees.
struct Disk(Scratch);

impl Disk {
    fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let at = Scratch::new("disk")?;
        mount(Some("tmpfs"), at.path(), Some("tmpfs"), MsFlags::empty(), Some("size=1m"))?;
        Ok(Self(at))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = vec![];
        for entry in fs::read_dir(self.path())? {
            files.push(entry?.path());
        }
        files.retain(|file| file.to_string_lossy().contains(".pcapng"));
        files.sort();
        Ok(files)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

fn options(disk: &Disk) -> Options {
    Options {
        directory: disk.path().to_owned(),
        owner: Owner { name: "web".to_owned(), host: 1, run: 2 },
        interface: "eth0".to_owned(),
        rotate_bytes: 64 << 20,
        rotate_ms: 3_600_000,
        keep_bytes: None,
        snap: 0,
        zstd: false,
        ring_bytes: 8 << 20,
    }
}

fn start(options: &Options) -> Result<(Intake, Recorder)> {
    let tally = Tally::new(Vec::leak((0..Figure::COUNT).map(|_| AtomicU64::new(0)).collect()));
    Ok(Recorder::start(options, tally, Amount::default(), || ())?)
}

/// Packets that do not compress; their first bytes behind the header tell their number.
fn put(intake: &mut Intake, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let mut packet = vec![0x45; 1_000];
        packet[2..4].copy_from_slice(&1_000_u16.to_be_bytes());
        let mut noise = number + 1;
        for byte in &mut packet[28..] {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            *byte = noise as u8;
        }
        packet[20..28].copy_from_slice(&number.to_be_bytes());
        intake.packet(1_000_000_000 + number, 1_000, &packet);
    }
}

fn settled(recorder: &Recorder, packets: u64) -> Result<()> {
    let tally = recorder.tally();
    wait::until("every packet is written or dropped", Duration::from_secs(10), || {
        tally.get(Figure::WrittenPackets) + tally.get(Figure::DiskPackets) == packets
    })
}

fn end(recorder: &Recorder) -> Result<()> {
    recorder.stop();
    wait::until("the recorder ends", Duration::from_secs(10), || recorder.is_finished())
}

fn read(files: &[PathBuf]) -> Result<Vec<u64>> {
    let mut reader = Reader::open(files, trace::Options::default())?;
    let mut numbers = vec![];
    while let Some(packet) = reader.next() {
        numbers.push(u64::from_be_bytes(packet.ip[20..28].try_into()?));
    }
    Ok(numbers)
}

fn a_full_disk(zstd: bool) -> Result<()> {
    let disk = Disk::new()?;
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 400 << 10])?;
    let (mut intake, recorder) = start(&Options { zstd, ..options(&disk) })?;
    step("two thousand packets, and room for six hundred");
    for first in (0..2_000).step_by(100) {
        put(&mut intake, first..first + 100);
        std::thread::sleep(Duration::from_millis(15));
    }
    settled(&recorder, 2_000)?;
    let tally = recorder.tally();
    let (written, dropped) = (tally.get(Figure::WrittenPackets), tally.get(Figure::DiskPackets));
    println!("    {written} written, {dropped} dropped");
    ensure!(dropped > 0 && tally.get(Figure::Failing) == 1, "{dropped} dropped");
    ensure!(tally.get(Figure::FullPackets) == 0, "the ring filled up: the writer stood still");
    ensure!(dropped * 1_000 == tally.get(Figure::DiskBytes));
    step("somebody makes room");
    fs::remove_file(&ballast)?;
    std::thread::sleep(Duration::from_millis(1_100));
    put(&mut intake, 2_000..2_100);
    settled(&recorder, 2_100)?;
    ensure!(tally.get(Figure::DiskPackets) == dropped, "packets were dropped although there was room");
    end(&recorder)?;
    let numbers = read(&disk.files()?)?;
    ensure!(numbers.len() as u64 == tally.get(Figure::WrittenPackets), "{} packets in files", numbers.len());
    ensure!(numbers.ends_with(&(2_000..2_100).collect::<Vec<_>>()), "the last hundred are not all there");
    ensure!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "packets twice, or out of order");
    Ok(())
}

fn keep_makes_room_on_a_small_disk() -> Result<()> {
    let disk = Disk::new()?;
    let wanted = Options { rotate_bytes: 100_000, keep_bytes: Some(800_000), ..options(&disk) };
    let (mut intake, recorder) = start(&wanted)?;
    step("ten times as many packets as the disk holds");
    for first in (0..10_000).step_by(500) {
        put(&mut intake, first..first + 500);
        settled(&recorder, first + 500)?;
    }
    end(&recorder)?;
    let tally = recorder.tally();
    ensure!(tally.get(Figure::WrittenPackets) == 10_000 && tally.get(Figure::DiskPackets) == 0);
    let numbers = read(&disk.files()?)?;
    ensure!(numbers.last() == Some(&9_999) && numbers.len() > 500, "{} packets are left", numbers.len());
    ensure!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a packet in the middle is missing");
    Ok(())
}
