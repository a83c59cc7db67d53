//! The shared token, as a server checks it: `authorization: Bearer TOKEN`.

use std::{env, fs, path::Path};

use subtle::ConstantTimeEq as _;
use tonic::{Request, Status, service::Interceptor};

use crate::version::{Digest, sha256};

/// The environment variable that a token is taken from when no file is named.
pub const TOKEN_VARIABLE: &str = "TINA_TOKEN";

/// Checks the token of every call; without a token of its own it lets all pass (loopback).
///
/// Use it as `RolloutsServer::with_interceptor(service, check)`, or with
/// `tonic::service::interceptor::InterceptedService` around a server whose limits are set.
#[derive(Clone)]
pub struct TokenCheck {
    // Digests are compared, so neither the token's text nor its length shows in the time taken.
    expected: Option<Digest>,
}

impl std::fmt::Debug for TokenCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCheck")
            .field("demands_a_token", &self.expected.is_some())
            .finish()
    }
}

impl TokenCheck {
    /// Demands this token; `None` demands nothing.
    pub fn new(token: Option<&str>) -> Self {
        Self {
            expected: token.map(|token| sha256(token.as_bytes())),
        }
    }

    /// Whether the value of an `authorization` header passes, in constant time.
    pub fn passes(&self, authorization: Option<&[u8]>) -> bool {
        let Some(expected) = &self.expected else {
            return true;
        };
        let token = authorization.and_then(|value| value.strip_prefix(b"Bearer "));
        token.is_some_and(|token| sha256(token).ct_eq(expected).into())
    }
}

impl Interceptor for TokenCheck {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let header = request
            .metadata()
            .get("authorization")
            .map(|value| value.as_bytes());
        if self.passes(header) {
            Ok(request)
        } else {
            Err(Status::unauthenticated(format!(
                "missing or wrong token: give the coordinator's token in {TOKEN_VARIABLE} or by file"
            )))
        }
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
}

/// The token in `file`, else the one in the environment variable `TINA_TOKEN`, else none. White
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
