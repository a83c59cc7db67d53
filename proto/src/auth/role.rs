//! Roles, and which of them each call is for.

use std::{fmt, str::FromStr};

/// What a caller may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Samples completions, and fetches adapters for that.
    Worker,
    /// Trains, and publishes adapters.
    Learner,
    /// Reads status.
    Reader,
    /// Reads status; pauses, resumes and stops the run.
    Operator,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Worker, Self::Learner, Self::Reader, Self::Operator];

    /// Its name on the command line, in tokens, certificates and files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Learner => "learner",
            Self::Reader => "reader",
            Self::Operator => "operator",
        }
    }

    /// The URI by which a certificate names it (in its subject's alternative names).
    pub fn uri(self) -> String {
        format!("urn:tina:role:{self}")
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// A name that is no role's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role; roles are worker, learner, reader and operator")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == name)
            .ok_or_else(|| UnknownRole(name.to_owned()))
    }
}

/// A set of roles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles(pub(super) u8);

impl Roles {
    /// No role.
    pub const NONE: Self = Self(0);
    /// Every role.
    pub const ALL: Self = Self::of(&Role::ALL);

    /// These.
    pub const fn of(roles: &[Role]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < roles.len() {
            bits |= 1 << roles[at] as u8;
            at += 1;
        }
        Self(bits)
    }

    /// Those that are in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// True without a role.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True when `role` is among them.
    pub const fn has(self, role: Role) -> bool {
        self.0 & (1 << role as u8) != 0
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<&str> = Role::ALL
            .into_iter()
            .filter(|role| self.has(*role))
            .map(Role::as_str)
            .collect();
        out.write_str(&named.join(" or "))
    }
}

/// The roles that a call is for, by its path, `/PACKAGE.SERVICE/METHOD`. What isn't named here nobody
/// may call: a new method has to be given a role first.
pub fn demand(path: &str) -> Roles {
    const WORKER: Roles = Roles::of(&[Role::Worker]);
    const LEARNER: Roles = Roles::of(&[Role::Learner]);
    const FETCHERS: Roles = Roles::of(&[Role::Worker, Role::Learner]);
    const READERS: Roles = Roles::of(&[Role::Reader, Role::Operator]);
    const OPERATOR: Roles = Roles::of(&[Role::Operator]);
    let (service, method) = path
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .unwrap_or_default();
    match (service, method) {
        ("tina.v1.Rollouts", "Work") => WORKER,
        ("tina.v1.Learning", "Learn") | ("tina.v1.Ranks", "Join") => LEARNER,
        ("tina.v1.Adapters", "Fetch") => FETCHERS,
        ("tina.v1.Adapters", "Publish") => LEARNER,
        (
            "tina.v1.Status",
            "GetStatus" | "WatchStatus" | "ListWorkers" | "ListSteps" | "ListCompletions",
        ) => READERS,
        ("tina.v1.Control", "Pause" | "Resume" | "Stop") => OPERATOR,
        // Which services there are is told to whoever has any role.
        (
            "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection",
            "ServerReflectionInfo",
        ) => Roles::ALL,
        _ => Roles::NONE,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_role_is_read_as_it_is_written() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        let error = "admin".parse::<Role>().unwrap_err().to_string();
        assert!(error.contains("operator"), "{error}");
    }

    #[test]
    fn a_set_has_what_it_was_made_of() {
        let set = Roles::of(&[Role::Worker, Role::Operator]);
        assert!(set.has(Role::Worker) && set.has(Role::Operator));
        assert!(!set.has(Role::Learner) && !set.has(Role::Reader));
        assert_eq!(set.to_string(), "worker or operator");
        assert!(set.and(Roles::of(&[Role::Reader])).is_empty());
        assert_eq!(Roles::ALL.and(set), set);
    }

    #[test]
    fn every_method_of_the_wire_is_for_somebody_and_others_for_nobody() {
        let files = prost_types::FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET).unwrap();
        let mut methods = 0;
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let (service, method) = (service.name(), method.name());
                    let path = format!("/{}.{service}/{method}", file.package());
                    assert!(!demand(&path).is_empty(), "{path} is for no role");
                    methods += 1;
                }
            }
        }
        assert!(methods >= 12, "{methods}");
        for path in [
            "",
            "/",
            "/tina.v1.Adapters/Delete",
            "/tina.v1.Status",
            "tina.v1.Status/GetStatus",
            "/other.Service/GetStatus",
        ] {
            assert!(demand(path).is_empty(), "{path}");
        }
    }

    #[test]
    fn a_role_may_what_it_is_for_and_no_more() {
        let may = |role: Role| -> Vec<&str> {
            let calls = [
                "/tina.v1.Rollouts/Work",
                "/tina.v1.Learning/Learn",
                "/tina.v1.Adapters/Fetch",
                "/tina.v1.Adapters/Publish",
                "/tina.v1.Status/GetStatus",
                "/tina.v1.Control/Stop",
            ];
            let may = calls.into_iter().filter(|path| demand(path).has(role));
            may.map(|path| path.split_once('/').unwrap().1.rsplit('/').next().unwrap())
                .collect()
        };
        assert_eq!(may(Role::Worker), ["Work", "Fetch"]);
        assert_eq!(may(Role::Learner), ["Learn", "Fetch", "Publish"]);
        assert_eq!(may(Role::Reader), ["GetStatus"]);
        assert_eq!(may(Role::Operator), ["GetStatus", "Stop"]);
    }
}
