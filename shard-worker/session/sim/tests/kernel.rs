//! The machine against the kernel's own TCP: one world of each family that the kernel can be the target of, all at once,
//! in real time.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::story::{Skipped, Story};
use sim::{Figure, Options, Profile, Scenario, run};

const STORIES: &[Story] = &[("the_kernel_as_the_target", 240, the_kernel_as_the_target)];
const SEED: u64 = 7;

fn the_kernel_as_the_target() -> Result<()> {
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        return Err(Skipped::NotHere(format!("no TUN device can be made here: {error}")).into());
    }
    let worlds = Profile::OF_THE_KERNEL.map(|profile| {
        std::thread::spawn(move || run(&Scenario::on_kernel(SEED, profile), Options::default()))
    });
    for (world, profile) in worlds.into_iter().zip(Profile::OF_THE_KERNEL) {
        let name = profile.name();
        let figures = match world.join() {
            Ok(Ok(figures)) => figures,
            Ok(Err(failure)) => {
                anyhow::bail!("{}; scripts/sim.sh --kernel --seed {SEED} --profile {name}", failure.what)
            }
            Err(_) => anyhow::bail!("the world of {name} panicked"),
        };
        let (sound, read) = (figures.get(Figure::Sound), figures.get(Figure::SoundRead));
        println!("    {name}: {read} of {sound} requests read, {} packets lost", figures.get(Figure::Lost));
        ensure!(sound > 0, "{name}: no flow without a fault");
        // Four-tuples that come back cut short what came before.
        ensure!(read == sound || profile == Profile::Reuse, "{name}: {read} of {sound} requests read");
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::story::run_all(STORIES, &[])
}
