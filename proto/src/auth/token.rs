//! The shared secret, and the tokens of single roles that follow from it: `authorization: Bearer TOKEN`.
//!
//! Whoever holds the secret may be anything. The token of a role is `tina-ROLE-` and the HMAC-SHA256
//! (RFC 2104) under the secret of a text that names the role, in hex: a coordinator that holds the
//! secret knows it, and whoever holds it learns neither the secret nor another role's token from it, as
//! long as the secret can't be guessed.

use std::{env, fs, path::Path, sync::Arc};

use ring::{hmac, rand::SecureRandom as _};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use tonic::{Request, Status, service::Interceptor};

use super::{Role, Roles};
use crate::version::{Digest, hex, sha256};

/// The environment variable that a token is taken from when no file is named.
pub const TOKEN_VARIABLE: &str = "TINA_TOKEN";

/// Bytes that a secret must have before a role's token of it may be handed out: a short one could be
/// guessed from that.
pub const MIN_SECRET: usize = 20;

/// Hex digits of a role's token.
const ROLE_DIGITS: usize = 64;

/// The token of one role, from the secret.
pub fn role_token(secret: &str, role: Role) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("tina.v1 token of the role {role}").as_bytes());
    format!("tina-{role}-{}", hex(tag.as_ref()))
}

/// The role whose token this looks like; `None`: it looks like a secret.
pub fn role_of_token(token: &str) -> Option<Role> {
    let (role, digits) = token.strip_prefix("tina-")?.split_once('-')?;
    let is_hex = digits.len() == ROLE_DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit());
    role.parse().ok().filter(|_| is_hex)
}

/// What a process of this role shows of what it was given: its role's token where it was given the
/// secret, which so never travels; a role's token as it is.
pub fn token_for(role: Role, given: &str) -> String {
    match role_of_token(given) {
        Some(_) => given.to_owned(),
        None => role_token(given, role),
    }
}

/// A new secret: 256 bits of the system's randomness, in hex.
///
/// # Errors
/// The system has none to give.
pub fn new_secret() -> Result<String, TokenError> {
    let mut bytes = [0; 32];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| TokenError::NoRandomness)?;
    Ok(hex(&bytes))
}

/// Checks the token of every call; without a token of its own it lets all pass (loopback).
///
/// As an interceptor (`RolloutsServer::with_interceptor(service, check)`) it lets every role pass;
/// [`Gate`](super::Gate) also asks which role a call is for.
#[derive(Clone)]
pub struct TokenCheck {
    // Digests are compared, so neither a token's text nor its length shows in the time taken.
    expected: Option<Arc<[(Digest, Roles)]>>,
}

impl std::fmt::Debug for TokenCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCheck")
            .field("demands_a_token", &self.expected.is_some())
            .finish()
    }
}

impl TokenCheck {
    /// Demands this secret or a token that follows from it (of a role's token: it alone); `None`
    /// demands nothing.
    pub fn new(token: Option<&str>) -> Self {
        let accepted = |token: &str| match role_of_token(token) {
            Some(role) => vec![(sha256(token.as_bytes()), Roles::of(&[role]))],
            None => Role::ALL
                .into_iter()
                .map(|role| (role_token(token, role), Roles::of(&[role])))
                .chain([(token.to_owned(), Roles::ALL)])
                .map(|(token, roles)| (sha256(token.as_bytes()), roles))
                .collect(),
        };
        Self {
            expected: token.map(|token| accepted(token).into()),
        }
    }

    /// The roles that the value of an `authorization` header is of, found in constant time.
    ///
    /// # Errors
    /// Unauthenticated: it is of none.
    pub fn roles(&self, authorization: Option<&[u8]>) -> Result<Roles, Status> {
        let Some(expected) = &self.expected else {
            return Ok(Roles::ALL);
        };
        let token = authorization.and_then(|value| value.strip_prefix(b"Bearer "));
        let found = sha256(token.unwrap_or_default());
        let mut roles = 0;
        for (digest, of) in expected.iter() {
            roles |= u8::conditional_select(&0, &of.0, found.ct_eq(digest));
        }
        match Roles(roles) {
            roles if token.is_some() && !roles.is_empty() => Ok(roles),
            _ => Err(Status::unauthenticated(format!(
                "missing or wrong token: give the coordinator's secret, or a token of it, in \
                 {TOKEN_VARIABLE} or by file"
            ))),
        }
    }
}

impl Interceptor for TokenCheck {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let header = request
            .metadata()
            .get("authorization")
            .map(|value| value.as_bytes());
        self.roles(header).map(|_| request)
    }
}

/// Why there is no usable token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file can't be read.
    #[error("token file {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Empty, or not fit for a header.
    #[error("the token from {origin} {problem}; write one line of letters, digits or signs")]
    Bad {
        /// The file or the variable.
        origin: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The system gives no randomness to make a secret of.
    #[error("the system gives no randomness to make a secret of")]
    NoRandomness,
}

/// The secret or token in `file`, else the one in the environment variable `TINA_TOKEN`, else none. White
/// space around it is dropped.
pub fn read_token(file: Option<&Path>) -> Result<Option<String>, TokenError> {
    let (text, origin) = match file {
        Some(path) => {
            let path_text = path.display().to_string();
            let text = fs::read_to_string(path).map_err(|source| TokenError::File {
                path: path_text.clone(),
                source,
            })?;
            (text, path_text)
        }
        None => match env::var(TOKEN_VARIABLE) {
            Ok(text) => (text, TOKEN_VARIABLE.to_owned()),
            Err(env::VarError::NotPresent) => return Ok(None),
            Err(env::VarError::NotUnicode(_)) => {
                let origin = TOKEN_VARIABLE.to_owned();
                return Err(TokenError::Bad {
                    origin,
                    problem: "is not text",
                });
            }
        },
    };
    check_token(text.trim(), &origin).map(|()| Some(text.trim().to_owned()))
}

fn check_token(token: &str, origin: &str) -> Result<(), TokenError> {
    let bad = |problem| {
        Err(TokenError::Bad {
            origin: origin.to_owned(),
            problem,
        })
    };
    if token.is_empty() {
        bad("is empty")
    } else if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bad("holds a blank or a character outside ASCII")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(check: &TokenCheck, header: Option<&str>) -> Result<Request<()>, Status> {
        let mut request = Request::new(());
        if let Some(header) = header {
            request
                .metadata_mut()
                .insert("authorization", header.parse().unwrap());
        }
        check.clone().call(request)
    }

    #[test]
    fn only_the_right_token_passes() {
        let check = TokenCheck::new(Some("s3cret"));
        assert!(call(&check, Some("Bearer s3cret")).is_ok());
        for wrong in [
            None,
            Some("Bearer s3cre"),
            Some("Bearer s3cret "),
            Some("s3cret"),
            Some("Bearer "),
        ] {
            let status = call(&check, wrong).unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unauthenticated, "{wrong:?}");
            assert!(!status.message().contains("s3cret"));
        }
        assert!(!format!("{check:?}").contains("s3cret"));
    }

    #[test]
    fn a_role_s_token_is_an_hmac_that_stays_what_it_is() {
        // HMAC-SHA256 as `openssl dgst -sha256 -hmac s3cret` computes it.
        let token = role_token("s3cret", Role::Reader);
        assert_eq!(
            token,
            "tina-reader-c0fc37e24cc164bd468319b6e34701994b0014c63c4ab10e6c6ba2bb20164414"
        );
        assert_eq!(role_of_token(&token), Some(Role::Reader));
        assert_eq!(role_of_token(&token[..token.len() - 1]), None);
        assert_eq!(role_of_token(&token.replace("reader", "admin")), None);
        assert_eq!(token_for(Role::Worker, &token), token);
        assert_eq!(
            token_for(Role::Worker, "s3cret"),
            role_token("s3cret", Role::Worker)
        );
    }

    #[test]
    fn each_token_is_of_its_role_and_the_secret_of_all() {
        let check = TokenCheck::new(Some("s3cret"));
        let roles = |token: &str| check.roles(Some(format!("Bearer {token}").as_bytes())).ok();
        for role in Role::ALL {
            let token = role_token("s3cret", role);
            assert_eq!(roles(&token), Some(Roles::of(&[role])));
            let narrow = TokenCheck::new(Some(&token));
            let header = |token: &str| format!("Bearer {token}").into_bytes();
            assert_eq!(
                narrow.roles(Some(&header(&token))).ok(),
                Some(Roles::of(&[role]))
            );
            assert!(narrow.roles(Some(&header("s3cret"))).is_err());
        }
        assert_eq!(roles("s3cret"), Some(Roles::ALL));
        assert_eq!(roles(&role_token("other", Role::Worker)), None);
    }

    #[test]
    fn a_new_secret_is_long_and_another_each_time() {
        let [one, other] = [new_secret().unwrap(), new_secret().unwrap()];
        assert!(one.len() >= MIN_SECRET && one != other);
        assert_eq!(role_of_token(&one), None);
    }

    #[test]
    fn without_a_token_all_pass() {
        assert!(call(&TokenCheck::new(None), None).is_ok());
        assert!(call(&TokenCheck::new(None), Some("Bearer whatever")).is_ok());
    }

    #[test]
    fn a_token_file_is_trimmed_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "  abc-123\n").unwrap();
        assert_eq!(read_token(Some(&path)).unwrap().as_deref(), Some("abc-123"));
        for bad in ["", " \n", "two words", "schlüssel"] {
            fs::write(&path, bad).unwrap();
            let error = read_token(Some(&path)).unwrap_err().to_string();
            assert!(error.contains("token"), "{error}");
        }
        let error = read_token(Some(&folder.path().join("none")))
            .unwrap_err()
            .to_string();
        assert!(error.contains("none"), "{error}");
    }
}
