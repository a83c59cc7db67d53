//! Work that a verdict may cost.

/// The fuel is spent: the verdict would cost more work than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more work than a verdict may cost")]
pub struct OutOfFuel;

/// Units of work that are left. One unit is about one small step: a character read, a node made, a
/// machine word of a big number multiplied; a microsecond holds some tens of them.
#[derive(Clone, Debug)]
pub struct Fuel {
    left: u64,
}

impl Fuel {
    /// So many units.
    pub fn new(units: u64) -> Self {
        Self { left: units }
    }

    /// Takes units away before the work is done.
    ///
    /// # Errors
    /// There are not as many left; then none are.
    pub fn spend(&mut self, units: u64) -> Result<(), OutOfFuel> {
        match self.left.checked_sub(units) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(OutOfFuel)
            }
        }
    }

    /// Units that are left.
    pub fn left(&self) -> u64 {
        self.left
    }
}
