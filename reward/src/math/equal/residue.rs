//! The field of p² elements, p = 2⁶¹ − 1, in which expressions are tested for being identical.
//!
//! p is 3 modulo 4, so −1 has no root modulo p, and the pairs (a, b) = a + b·i are a field: every
//! rational number, i, and the square root of every rational has its place there, and identities
//! between them hold there. Random values for the variables give a Schwartz–Zippel test.

use num_bigint::{BigInt, BigUint, Sign};
use num_rational::BigRational;

/// 2⁶¹ − 1, a Mersenne prime.
const P: u64 = (1 << 61) - 1;

/// An element a + b·i.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Residue {
    re: u64,
    im: u64,
}

fn reduce(value: u128) -> u64 {
    let folded = (value & u128::from(P)) + (value >> 61);
    let folded = (folded & u128::from(P)) as u64 + (folded >> 61) as u64;
    if folded >= P { folded - P } else { folded }
}

fn add(a: u64, b: u64) -> u64 {
    let sum = a + b;
    if sum >= P { sum - P } else { sum }
}

fn negate(a: u64) -> u64 {
    if a == 0 { 0 } else { P - a }
}

fn multiply(a: u64, b: u64) -> u64 {
    reduce(u128::from(a) * u128::from(b))
}

fn power(mut base: u64, mut exponent: u64) -> u64 {
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = multiply(result, base);
        }
        base = multiply(base, base);
        exponent >>= 1;
    }
    result
}

/// The remainder modulo p of a magnitude.
fn remainder(value: &BigUint) -> u64 {
    // 2⁶⁴ is 8 modulo p: Horner from the highest digit.
    value.iter_u64_digits().rev().fold(0, |remainder, digit| {
        reduce(u128::from(remainder) * 8 + u128::from(digit))
    })
}

impl Residue {
    pub(super) const ZERO: Self = Self { re: 0, im: 0 };
    pub(super) const ONE: Self = Self { re: 1, im: 0 };
    pub(super) const I: Self = Self { re: 0, im: 1 };

    /// A small whole number.
    pub(super) fn small(value: u64) -> Self {
        Self {
            re: value % P,
            im: 0,
        }
    }

    pub(super) fn integer(value: &BigInt) -> Self {
        let re = remainder(value.magnitude());
        Self {
            re: if value.sign() == Sign::Minus {
                negate(re)
            } else {
                re
            },
            im: 0,
        }
    }

    /// None where p divides the denominator.
    pub(super) fn rational(value: &BigRational) -> Option<Self> {
        let numerator = Self::integer(value.numer());
        if value.is_integer() {
            return Some(numerator);
        }
        Some(numerator.times(Self::integer(value.denom()).inverse()?))
    }

    /// Square root of a whole number below p, one of the two, the same at every call.
    pub(super) fn root_of_prime(prime: u64) -> Self {
        let prime = prime % P;
        let root = power(prime, (P + 1) / 4);
        if multiply(root, root) == prime {
            Self { re: root, im: 0 }
        } else {
            // Then −prime has a root.
            Self {
                re: 0,
                im: power(negate(prime), (P + 1) / 4),
            }
        }
    }

    pub(super) fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            re: add(self.re, other.re),
            im: add(self.im, other.im),
        }
    }

    pub(super) fn negated(self) -> Self {
        Self {
            re: negate(self.re),
            im: negate(self.im),
        }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        self.plus(other.negated())
    }

    pub(super) fn times(self, other: Self) -> Self {
        if self.im == 0 && other.im == 0 {
            return Self {
                re: multiply(self.re, other.re),
                im: 0,
            };
        }
        Self {
            re: add(
                multiply(self.re, other.re),
                negate(multiply(self.im, other.im)),
            ),
            im: add(multiply(self.re, other.im), multiply(self.im, other.re)),
        }
    }

    /// None for zero.
    pub(super) fn inverse(self) -> Option<Self> {
        let norm = add(multiply(self.re, self.re), multiply(self.im, self.im));
        if norm == 0 {
            return None;
        }
        let inverse = power(norm, P - 2);
        Some(Self {
            re: multiply(self.re, inverse),
            im: multiply(negate(self.im), inverse),
        })
    }

    /// A whole power, of any size; None for a negative power of zero.
    pub(super) fn raised(self, exponent: &BigInt) -> Option<Self> {
        if self.is_zero() {
            return match exponent.sign() {
                Sign::Minus => None,
                Sign::NoSign => Some(Self::ONE),
                Sign::Plus => Some(Self::ZERO),
            };
        }
        // The group has p² − 1 elements.
        let order = u128::from(P) * u128::from(P) - 1;
        let mut left = match u128::try_from(exponent.magnitude()) {
            Ok(small) => small % order,
            Err(_) => u128::try_from(exponent.magnitude() % order).ok()?,
        };
        let mut base = if exponent.sign() == Sign::Minus {
            self.inverse()?
        } else {
            self
        };
        let mut result = Self::ONE;
        while left > 0 {
            if left & 1 == 1 {
                result = result.times(base);
            }
            base = base.times(base);
            left >>= 1;
        }
        Some(result)
    }
}

/// Turns names and values into elements that look random: the same for the same, on every machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scrambler(u64, u64);

fn mix(mut value: u64) -> u64 {
    // The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Scrambler {
    /// `kind` keeps different sorts of things apart.
    pub(super) fn new(kind: u64) -> Self {
        Self(
            mix(kind ^ 0x9e37_79b9_7f4a_7c15),
            mix(kind ^ 0xd1b5_4a32_d192_ed03),
        )
    }

    pub(super) fn word(mut self, word: u64) -> Self {
        self.0 = mix(self.0.rotate_left(5) ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.1 = mix(self.1.rotate_left(9).wrapping_add(word)) ^ 0xd1b5_4a32_d192_ed03;
        self
    }

    pub(super) fn text(self, text: &str) -> Self {
        text.bytes()
            .fold(self.word(text.len() as u64), |state, byte| {
                state.word(u64::from(byte))
            })
    }

    pub(super) fn residue(self, value: Residue) -> Self {
        self.word(value.re).word(value.im)
    }

    /// An element of the field.
    pub(super) fn element(self) -> Residue {
        Residue {
            re: mix(self.0 ^ self.1.rotate_left(17)) % P,
            im: mix(self.1 ^ self.0.rotate_left(31)) % P,
        }
    }

    /// An element without imaginary part, for π and e.
    pub(super) fn real_element(self) -> Residue {
        Residue {
            im: 0,
            ..self.element()
        }
    }

    /// 64 bits.
    pub(super) fn bits(self) -> u64 {
        mix(self.0 ^ self.1.rotate_left(17))
    }
}
