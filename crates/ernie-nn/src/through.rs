//! Which adapter the rows of an input go through.

use std::sync::Arc;

/// What the rows of an input go through beside the weights: adapters, by their numbers ([`crate::Linear::adapt`]).
#[derive(Clone, Debug, Default)]
pub enum Through {
    /// The weights alone.
    #[default]
    Weights,
    /// All of them the same adapter. Gradients pass.
    One(usize),
    /// Not all of them the same. For inference: gradients do not pass.
    Each(Arc<Each>),
}

/// The rows of an input, of which some go through one adapter and some through another or none.
#[derive(Debug)]
pub struct Each {
    by_row: Vec<Option<usize>>,
    /// Each adapter with its rows, in order: what is gathered, changed and put back together.
    groups: Vec<(usize, Vec<usize>)>,
}

impl Through {
    /// An adapter or none for each row.
    pub fn each(by_row: Vec<Option<usize>>) -> Self {
        let first = by_row.first().copied().flatten();
        if by_row.iter().all(|&which| which == first) {
            return first.map_or(Self::Weights, Self::One);
        }
        let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
        for (row, which) in by_row.iter().enumerate().filter_map(|(row, which)| Some((row, (*which)?))) {
            match groups.iter_mut().find(|group| group.0 == which) {
                Some(group) => group.1.push(row),
                None => groups.push((which, vec![row])),
            }
        }
        Self::Each(Arc::new(Each { by_row, groups }))
    }

    /// The same for some of the rows, in the order asked for. A row that is not there goes through the weights alone.
    #[must_use]
    pub fn rows(&self, rows: &[usize]) -> Self {
        match self {
            Self::Each(each) => Self::each(rows.iter().map(|&row| each.by_row.get(row).copied().flatten()).collect()),
            same => same.clone(),
        }
    }

    /// Whether each of `count` rows goes through an adapter of which `is` holds.
    pub fn each_is(&self, count: usize, is: impl Fn(usize) -> bool) -> Vec<bool> {
        match self {
            Self::Weights => vec![false; count],
            Self::One(which) => vec![is(*which); count],
            Self::Each(each) => each.by_row.iter().map(|which| which.is_some_and(&is)).collect(),
        }
    }
}

impl Each {
    pub(crate) fn groups(&self) -> &[(usize, Vec<usize>)] {
        &self.groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_go_the_same_way_are_one_group() {
        assert!(matches!(Through::each(vec![]), Through::Weights));
        assert!(matches!(Through::each(vec![None; 3]), Through::Weights));
        assert!(matches!(Through::each(vec![Some(2); 3]), Through::One(2)));
        let mixed = Through::each(vec![None, Some(1), Some(0), Some(1)]);
        let Through::Each(each) = &mixed else { panic!("{mixed:?}") };
        assert_eq!(each.groups(), [(1, vec![1, 3]), (0, vec![2])]);
        assert_eq!(mixed.each_is(4, |which| which == 1), [false, true, false, true]);
        assert!(matches!(mixed.rows(&[3, 1]), Through::One(1)));
        assert!(matches!(mixed.rows(&[0]), Through::Weights));
        assert!(matches!(mixed.rows(&[2, 0]), Through::Each(each) if each.by_row == [Some(0), None]));
    }
}
