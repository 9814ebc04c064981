//! x
/// x
pub const ERNIE_TEMPLATE: &str = "";
