//! Certificates for a cluster: an authority, the coordinator's certificate, and one for each role.
//!
//! A role's certificate names the role by a URI among its alternative names
//! ([`Role::uri`]), and is good for dialling only; the coordinator's is good for being dialled only, so
//! none of them can take the part of the other.

use std::{
    fs,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};
use tina_proto::auth::Role;

/// Names by which the coordinator is always dialled on its own machine.
const OWN_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Clocks of a cluster's machines may differ by so much.
const CLOCK_SLACK: Duration = Duration::days(1);
/// Days that certificates may be good for.
pub const MAX_DAYS: u32 = 3650;

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// Some are there already.
    #[error(
        "{0} is there already, and is not overwritten: name another folder, or move that one away"
    )]
    Exists(PathBuf),
    /// No host's name.
    #[error(
        "{0:?} is no host: give a name like trainer.example.org or an IP address, without port"
    )]
    Host(String),
    /// A time that makes no sense.
    #[error("certificates for {0} days: 1 to {MAX_DAYS} are possible")]
    Days(u32),
    /// The folder can't be written to.
    #[error("{path}: can't be written")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A certificate can't be made.
    #[error("a certificate can't be made")]
    Certificate(#[from] rcgen::Error),
}

/// What is to be made.
#[derive(Clone, Debug)]
pub struct CertsOptions {
    /// Where to; made if it isn't there.
    pub folder: PathBuf,
    /// Names and IP addresses by which other machines dial the coordinator.
    pub hosts: Vec<String>,
    /// How long they are good for.
    pub days: u32,
}

/// A certificate and its key, as PEM.
struct Pair {
    name: String,
    certificate: String,
    key: String,
}

/// Makes `ca`, `coordinator`, `worker`, `learner`, `reader` and `operator`, each `.pem` (anybody may
/// read it) and `.key` (mode 0600). Returns the files.
///
/// # Errors
/// See [`CertsError`]; nothing that is there is overwritten.
pub fn make_certificates(options: &CertsOptions) -> Result<Vec<PathBuf>, CertsError> {
    if !(1..=MAX_DAYS).contains(&options.days) {
        return Err(CertsError::Days(options.days));
    }
    for host in &options.hosts {
        check_host(host)?;
    }
    let pairs = make(options)?;
    let folder = &options.folder;
    let files: Vec<(PathBuf, &str, u32)> = pairs
        .iter()
        .flat_map(|pair| {
            let file = |ending: &str| folder.join(format!("{}.{ending}", pair.name));
            [
                (file("pem"), &*pair.certificate, 0o644),
                (file("key"), &*pair.key, 0o600),
            ]
        })
        .collect();
    // All are looked for before any is written: half a set is of no use to anybody.
    if let Some((path, ..)) = files.iter().find(|(path, ..)| path.exists()) {
        return Err(CertsError::Exists(path.clone()));
    }
    fs::create_dir_all(folder).map_err(|source| CertsError::File {
        path: folder.clone(),
        source,
    })?;
    for (path, text, mode) in &files {
        write(path, text, *mode)?;
    }
    Ok(files.into_iter().map(|(path, ..)| path).collect())
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertsError> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    })
    .map_err(|source| CertsError::File {
        path: path.to_owned(),
        source,
    })
}

fn check_host(host: &str) -> Result<(), CertsError> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let fine = host.parse::<IpAddr>().is_ok() || (host.len() <= 253 && host.split('.').all(label));
    if fine {
        Ok(())
    } else {
        Err(CertsError::Host(host.to_owned()))
    }
}

fn make(options: &CertsOptions) -> Result<Vec<Pair>, CertsError> {
    // Certificates are of the wall clock: other machines read them.
    let now = OffsetDateTime::now_utc();
    let until = now + Duration::days(options.days.into());
    let params = |name: &str, hosts: Vec<String>| -> Result<CertificateParams, CertsError> {
        let mut params = CertificateParams::new(hosts)?;
        params.not_before = now - CLOCK_SLACK;
        params.not_after = until;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Tina");
        params
            .distinguished_name
            .push(DnType::CommonName, format!("tina {name}"));
        Ok(params)
    };

    let key = KeyPair::generate()?;
    let mut authority = params("authority", Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let mut pairs = vec![Pair {
        name: "ca".to_owned(),
        certificate: authority.self_signed(&key)?.pem(),
        key: key.serialize_pem(),
    }];
    let issuer = Issuer::new(authority, key);

    let mut sign = |name: &str, mut params: CertificateParams, usage| -> Result<(), CertsError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        pairs.push(Pair {
            name: name.to_owned(),
            certificate: params.signed_by(&key, &issuer)?.pem(),
            key: key.serialize_pem(),
        });
        Ok(())
    };
    let mut hosts: Vec<String> = OWN_HOSTS.map(str::to_owned).into();
    hosts.extend(options.hosts.iter().cloned());
    hosts.sort();
    hosts.dedup();
    sign(
        "coordinator",
        params("coordinator", hosts)?,
        ExtendedKeyUsagePurpose::ServerAuth,
    )?;
    for role in Role::ALL {
        let mut named = params(role.as_str(), Vec::new())?;
        named.subject_alt_names = vec![SanType::URI(role.uri().try_into()?)];
        sign(role.as_str(), named, ExtendedKeyUsagePurpose::ClientAuth)?;
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn options(folder: &Path) -> CertsOptions {
        CertsOptions {
            folder: folder.to_owned(),
            hosts: vec!["10.1.2.3".into(), "trainer.example.org".into()],
            days: 30,
        }
    }

    #[test]
    fn a_set_has_all_that_a_cluster_needs_and_its_keys_are_the_owner_s_alone() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("new/certs");
        let files = make_certificates(&options(&to)).unwrap();
        let names: Vec<_> = files
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        for name in [
            "ca",
            "coordinator",
            "worker",
            "learner",
            "reader",
            "operator",
        ] {
            assert!(names.contains(&&*format!("{name}.pem")), "{names:?}");
            let key = to.join(format!("{name}.key"));
            assert_eq!(
                fs::metadata(key).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        assert_eq!(files.len(), 12);
    }

    #[test]
    fn what_is_there_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("worker.key");
        fs::write(&key, "mine").unwrap();
        let error = make_certificates(&options(folder.path())).unwrap_err();
        assert!(
            matches!(&error, CertsError::Exists(path) if *path == key),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&key).unwrap(), "mine");
        assert!(!folder.path().join("ca.key").exists(), "half a set");
    }

    #[test]
    fn hosts_and_days_that_cannot_be_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for host in ["", "https://a", "a:7461", "a b", "a..b", "bücher.example"] {
            let options = CertsOptions {
                hosts: vec![host.into()],
                ..options(folder.path())
            };
            let error = make_certificates(&options).unwrap_err().to_string();
            assert!(error.contains(&format!("{host:?}")), "{error}");
        }
        for days in [0, MAX_DAYS + 1] {
            let options = CertsOptions {
                days,
                ..options(folder.path())
            };
            assert!(matches!(
                make_certificates(&options),
                Err(CertsError::Days(_))
            ));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
