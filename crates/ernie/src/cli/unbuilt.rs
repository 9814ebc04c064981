//! Commands of the contract that do not exist yet.
//!
//! They are refused by name, exit code 2. When one is built its line here goes.

const COMMANDS: &[(&str, &str)] = &[
    ("prune", "a pruned checkpoint"),
    ("plan", "memory, speed and cost of a model on given hardware"),
    ("claims", "the article's claims and what was measured"),
];

/// What a command that is still to come will do.
pub(super) fn command(name: &str) -> Option<&'static str> {
    COMMANDS.iter().find(|(n, _)| *n == name).map(|(_, what)| *what)
}

/// The names of the commands still to come.
#[cfg(test)]
pub(super) fn commands() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, _)| *name)
}
