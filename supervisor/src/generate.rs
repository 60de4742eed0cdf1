//! What a package holds beside the program, written from the command line's own description: manual pages and shell
//! completions.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap_complete::Shell;

/// What can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum What {
    /// Completions for bash.
    Bash,
    /// Completions for zsh.
    Zsh,
    /// Completions for fish.
    Fish,
    /// Manual pages, one a command.
    Man,
}

/// Writes it into the directory, which is made when it is missing, and prints the names of the files.
pub(crate) fn run(command: clap::Command, what: What, directory: &str) -> anyhow::Result<ExitCode> {
    let to = Path::new(directory);
    std::fs::create_dir_all(to).with_context(|| format!("making the directory {directory} failed"))?;
    let mut command = shown(command);
    let written = || format!("writing into {directory} failed. Choose a directory of your own");
    let shell = match what {
        What::Bash => Shell::Bash,
        What::Zsh => Shell::Zsh,
        What::Fish => Shell::Fish,
        What::Man => {
            clap_mangen::generate_to(command, to).with_context(written)?;
            println!("{directory}: manual pages, one a command (man -l {directory}/tcptwin.1)");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let file = clap_complete::generate_to(shell, &mut command, "tcptwin", to).with_context(written)?;
    println!("{}", file.display());
    Ok(ExitCode::SUCCESS)
}

/// The command line without what only the program itself calls.
fn shown(command: clap::Command) -> clap::Command {
    let hidden = |sub: &&clap::Command| !sub.is_hide_set();
    let kept: Vec<clap::Command> = command.get_subcommands().filter(hidden).cloned().collect();
    let mut whole = clap::Command::new("tcptwin")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .subcommands(kept);
    if let Some(about) = command.get_about() {
        whole = whole.about(about.clone());
    }
    if let Some(after) = command.get_after_help() {
        whole = whole.after_help(after.clone());
    }
    whole
}

#[cfg(test)]
mod tests {
    use lab::scratch::Scratch;

    use super::*;

    #[test]
    fn each_command_has_a_page_and_none_that_only_the_program_calls() {
        let dir = Scratch::new("generate").unwrap();
        let to = dir.path().to_str().unwrap();
        run(crate::cli::command(), What::Man, to).unwrap();
        for page in ["tcptwin", "tcptwin-run", "tcptwin-intercept", "tcptwin-ctl", "tcptwin-ctl-upgrade"] {
            let text = std::fs::read_to_string(dir.path().join(format!("{page}.1"))).unwrap();
            assert!(text.starts_with(".ie"), "{page} is no manual page: {text}");
        }
        for page in ["tcptwin-role", "tcptwin-handover", "tcptwin-generate"] {
            assert!(!dir.path().join(format!("{page}.1")).exists(), "{page}");
        }
    }

    #[test]
    fn completions_know_the_options() {
        let dir = Scratch::new("completions").unwrap();
        for (what, file) in
            [(What::Bash, "tcptwin.bash"), (What::Zsh, "_tcptwin"), (What::Fish, "tcptwin.fish")]
        {
            run(crate::cli::command(), what, dir.path().to_str().unwrap()).unwrap();
            let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
            assert!(text.contains("on-gap") && !text.contains("handover"), "{file}");
        }
    }
}
