//! Commands and flags of the contract that do not exist yet.
//!
//! They are refused by name, exit code 2. When one is built its line here goes.

const COMMANDS: &[(&str, &str)] = &[
    ("upcycle", "a dense model turned into experts"),
    ("prune", "a pruned checkpoint"),
    ("convert", "a checkpoint in another format"),
    ("plan", "memory, speed and cost of a model on given hardware"),
    ("claims", "the article's claims and what was measured"),
];

const FLAGS: &[(&str, &str)] = &[
    ("--adapter", "an adapter beside a model; `ernie merge` puts one into its weights"),
    ("--compare", "load on two servers in turn"),
];

/// What a command that is still to come will do.
pub(super) fn command(name: &str) -> Option<&'static str> {
    find(COMMANDS, name)
}

/// What a flag that is still to come will do.
pub(super) fn flag(name: &str) -> Option<&'static str> {
    find(FLAGS, name)
}

/// The names of the commands still to come.
#[cfg(test)]
pub(super) fn commands() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, _)| *name)
}

fn find(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|(n, _)| *n == name).map(|(_, what)| *what)
}
