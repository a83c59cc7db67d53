//! The disk that a run writes to is full for a while. The disk is a tmpfs, which takes root and Linux;
//! elsewhere the test is skipped and says so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use support::{Bench, STEPS};

/// A small disk, mounted at a folder.
struct Disk(PathBuf);

impl Disk {
    /// `None` where none can be mounted.
    fn at(folder: &Path) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m", "tina-test"])
            .arg(folder)
            .output();
        mount
            .is_ok_and(|output| output.status.success())
            .then(|| Self(folder.to_owned()))
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Leaves not a byte free.
    fn fill(&self) {
        let mut ballast = File::create(self.ballast()).unwrap();
        for block in [1 << 16, 1 << 12, 1] {
            while ballast.write_all(&vec![0; block]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_run_whose_disk_is_full_stops_and_goes_on_when_there_is_room() {
    let bench = Bench::new();
    let Some(disk) = Disk::at(&bench.path("runs")) else {
        eprintln!("skipped: no tmpfs can be mounted here");
        return;
    };
    bench.up("whole", &[]).finish().summary();
    let whole = bench.final_adapter("whole");

    let mut more: &[&str] = &[];
    for step in [3, 40, 80] {
        let mut up = bench.up("full", more);
        up.wait_for_step(step);
        disk.fill();
        let ended = up.finish();
        assert!(!ended.success, "on a full disk nothing goes on");
        let told = ["free some space", "--resume"];
        assert!(
            told.iter().all(|part| ended.stderr.contains(part)),
            "it says what to do:\n{}",
            ended.stderr
        );
        // What can't even begin says why, and harms nothing.
        let again = bench.up("full", &["--resume"]).finish();
        assert!(!again.success, "{}", again.stdout);
        disk.free();
        more = &["--resume"];
    }
    assert_eq!(bench.up("full", more).finish().summary()["steps"], STEPS);
    assert!(
        bench.final_adapter("full") == whole,
        "a full disk changed the adapter"
    );
}
