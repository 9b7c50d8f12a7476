//! The reference of all commands in Markdown, made of what clap knows of them: `docs/reference/cli.md`.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command};

const HEAD: &str = "# Commands\n\n<!-- Made by 'make reference' of the program itself; do not edit. -->\n\n\
What every command takes is under [options of all commands](#options-of-all-commands). \
Exit codes: [exit-codes.md](../exit-codes.md). Errors: [troubleshooting.md](../troubleshooting.md). \
Settings: [settings.md](settings.md).\n";

pub fn reference(mut root: Command) -> String {
    root.build();
    let mut out = HEAD.to_owned();
    let shown: Vec<&Command> = root.get_subcommands().filter(|c| is_shown(c)).collect();
    out.push_str("\n| command | does |\n|---|---|\n");
    for command in &shown {
        let name = command.get_name();
        row(&mut out, &format!("[`{name}`](#pgark-{name})"), &about(command));
    }
    let globals: Vec<&Arg> = root.get_arguments().filter(|a| a.is_global_set() && !a.is_hide_set()).collect();
    out.push_str("\n## Options of all commands\n\n");
    table(&mut out, &globals);
    for command in shown {
        section(&mut out, command, 2);
    }
    out
}

fn is_shown(command: &Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

fn section(out: &mut String, command: &Command, depth: usize) {
    // Writing to a String cannot fail.
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let _ = writeln!(out, "\n{} {name}\n\n{}.\n", "#".repeat(depth), about(command));
    let usage = command.clone().render_usage().to_string();
    let _ = writeln!(out, "```\n{}\n```", usage.trim_start_matches("Usage: ").trim());
    let aliases: Vec<String> = command.get_all_aliases().map(|a| format!("`{a}`")).collect();
    if !aliases.is_empty() {
        let _ = writeln!(out, "\nAlso {}.", aliases.join(", "));
    }
    let is_own =
        |a: &&Arg| !a.is_global_set() && !a.is_hide_set() && !matches!(a.get_id().as_str(), "help" | "version");
    let own: Vec<&Arg> = command.get_arguments().filter(is_own).collect();
    if !own.is_empty() {
        out.push('\n');
        table(out, &own);
    }
    for inner in command.get_subcommands().filter(|c| is_shown(c)) {
        section(out, inner, depth + 1);
    }
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn table(out: &mut String, arguments: &[&Arg]) {
    out.push_str("| option | meaning |\n|---|---|\n");
    for argument in arguments {
        row(out, &format!("`{}`", spelled(argument)), &meaning(argument));
    }
}

fn spelled(argument: &Arg) -> String {
    let names: Vec<String> = argument.get_value_names().unwrap_or_default().iter().map(|n| format!("<{n}>")).collect();
    let values = if takes_values(argument) { names.join(" ") } else { String::new() };
    let short = argument.get_short().map(|s| format!("-{s}"));
    let long = argument.get_long().map(|l| format!("--{l}"));
    let flags: Vec<String> = short.into_iter().chain(long).collect();
    format!("{} {values}", flags.join(", ")).trim().to_owned()
}

fn takes_values(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Set | ArgAction::Append)
}

fn meaning(argument: &Arg) -> String {
    let mut text = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let possible: Vec<String> = match takes_values(argument) {
        true => argument
            .get_possible_values()
            .iter()
            .filter(|v| !v.is_hide_set())
            .map(|v| format!("`{}`", v.get_name()))
            .collect(),
        false => vec![],
    };
    if !possible.is_empty() {
        let _ = write!(text, " ({})", possible.join(", "));
    }
    let defaults: Vec<String> =
        argument.get_default_values().iter().map(|v| format!("`{}`", v.to_string_lossy())).collect();
    if takes_values(argument) && !defaults.is_empty() && !text.contains("[default") {
        let _ = write!(text, " [default: {}]", defaults.join(", "));
    }
    text
}

fn row(out: &mut String, first: &str, second: &str) {
    let cell = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let _ = writeln!(out, "| {} | {} |", cell(first), cell(second));
}
