//! What a run came to, for whoever reads the terminal.

use flow::Drop;
use session::Count;
use sim::{Figure, Figures, Profile};

/// A row for each family of which there were worlds, then the sums.
pub(crate) fn print_all(sums: &[Figures]) {
    println!(
        "{:<9} {:>6} {:>8} {:>9} {:>8} {:>9} {:>7} {:>7} {:>7} {:>7} {:>10}",
        "profile",
        "seeds",
        "sessions",
        "packets",
        "lost",
        "requests",
        "read %",
        "sound %",
        "guessed",
        "early",
        "wait p50/99"
    );
    let mut all = Figures::default();
    for (profile, figures) in Profile::ALL.iter().zip(sums) {
        all.sum(figures);
        if figures.get(Figure::Seeds) > 0 {
            print_row(profile.name(), figures);
        }
    }
    print_row("all", &all);
    print_figures(&all);
}

fn print_row(name: &str, figures: &Figures) {
    let get = |figure| figures.get(figure);
    println!(
        "{name:<9} {:>6} {:>8} {:>9} {:>8} {:>9} {:>7.3} {:>7.3} {:>7} {:>7} {:>5}/{} us",
        get(Figure::Seeds),
        get(Figure::Sessions),
        get(Figure::ToTarget) + get(Figure::ToUs),
        get(Figure::Lost),
        get(Figure::Requests),
        figures.fidelity(true),
        figures.fidelity(false),
        figures.counts[Count::TurnsGuessed.index()],
        get(Figure::Early),
        figures.wait_us(500),
        figures.wait_us(990),
    );
}

/// Every figure, drop and counter that is not zero.
pub(crate) fn print_figures(figures: &Figures) {
    let named = Figure::ALL.iter().map(|figure| (figure.name(), figures.get(*figure)));
    let list: Vec<_> = named.map(|(name, n)| format!("{n} {name}")).collect();
    println!("{}", list.join(", "));
    let dropped = Drop::ALL.iter().zip(figures.dropped).filter(|(_, bytes)| *bytes > 0);
    let list: Vec<_> = dropped.map(|(reason, bytes)| format!("{} {bytes}", reason.name())).collect();
    println!("bytes dropped: {}", list.join(", "));
    let counts = Count::ALL.iter().zip(figures.counts).filter(|(_, n)| *n > 0);
    let list: Vec<_> = counts.map(|(count, n)| format!("{} {n}", count.name())).collect();
    println!("counters: {}", list.join(", "));
}
