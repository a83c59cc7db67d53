//! Who may do what: roles, and how a caller shows that it has one.
//!
//! - [`Role`], [`Roles`]: what there is to be; [`demand`]: which of them a call is for.
//! - [`token`](TokenCheck): the shared secret, and the tokens of single roles that follow from it.
//! - [`certificate_roles`]: the roles that a client's certificate names.
//! - [`Gate`]: all of it, around a service.

mod gate;
mod role;
mod token;

pub use gate::{Admission, Gate, certificate_roles};
pub use role::{Role, Roles, UnknownRole, demand};
pub use token::{
    MIN_SECRET, TOKEN_VARIABLE, TokenCheck, TokenError, new_secret, read_token, role_of_token,
    role_token, token_for,
};
