//! A small web application on a real database, with commands that stop and start it and write down that they were called.
//!
//! It runs while the file `wanted` is there, and says so by the file `running`. Invariant: it is gone when it is dropped.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::os::{Scratch, give_to_postgres};
use crate::psql::{Address, try_psql};

const POLL: Duration = Duration::from_millis(20);

/// Behaves badly in a way of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Stopping says that it is done, and it goes on.
    Stubborn,
    /// It dies this long after it has started.
    DiesAfter(Duration),
    /// It starts, and answers every question with status 500.
    Confused,
}

#[derive(Debug)]
pub struct Application {
    dir: PathBuf,
    port: u16,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Application {
    /// `app.env` says which database it asks: `DB_HOST`, `DB_PORT`, `DB_NAME`, read when it starts.
    pub fn new(scratch: &Scratch, name: &str, settings: &str, table: &str) -> Application {
        let dir = scratch.dir(name);
        fs::write(dir.join("app.env"), settings).expect("settings of the application");
        give_to_postgres(&dir.join("app.env"));
        let port = crate::free_port();
        // "stop" and "start" wait as long as a service manager would, and no longer.
        let script = format!(
            "#!/bin/sh\ncd '{}' || exit 9\necho \"$1\" >> calls\nn=0\ncase \"$1\" in\n\
             stop) rm -f wanted; while [ -e running ] && [ $n -lt 50 ] && [ ! -e stubborn ]; do sleep 0.1; n=$((n+1)); done;;\n\
             start) touch wanted; while [ ! -e running ] && [ $n -lt 50 ]; do sleep 0.1; n=$((n+1)); done;;\n\
             status) [ -e running ] || exit 3;;\n\
             flood) cat > told; head -c 20000000 /dev/zero | tr '\\0' 'x'; exit 1;;\n\
             tell) cat > told;;\nesac\n",
            dir.display()
        );
        scratch.file(&format!("{name}/app"), script.as_bytes(), 0o755);
        let over = Arc::new(AtomicBool::new(false));
        let thread = {
            let (dir, over, table) = (dir.clone(), over.clone(), table.to_owned());
            std::thread::spawn(move || live(&dir, port, &table, &over))
        };
        Application { dir, port, over, thread: Some(thread) }
    }

    pub fn program(&self) -> PathBuf {
        self.dir.join("app")
    }

    pub fn settings(&self) -> PathBuf {
        self.dir.join("app.env")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn be(&self, mood: Option<Mood>) {
        for (file, content) in [
            ("stubborn", (mood == Some(Mood::Stubborn)).then(String::new)),
            ("confused", (mood == Some(Mood::Confused)).then(String::new)),
            (
                "dies",
                match mood {
                    Some(Mood::DiesAfter(after)) => Some(after.as_millis().to_string()),
                    _ => None,
                },
            ),
        ] {
            match content {
                Some(content) => fs::write(self.dir.join(file), content).expect("a mood"),
                None => drop(fs::remove_file(self.dir.join(file))),
            }
        }
    }

    pub fn start(&self) {
        fs::write(self.dir.join("wanted"), "").expect("it is wanted");
        give_to_postgres(&self.dir.join("wanted"));
        crate::wait_until("the application runs", Duration::from_secs(30), || self.runs().then_some(()));
    }

    /// As it is after a start: with the settings that it has now.
    pub fn restart(&self) {
        drop(fs::remove_file(self.dir.join("wanted")));
        crate::wait_until("the application stops", Duration::from_secs(30), || (!self.runs()).then_some(()));
        self.start();
    }

    pub fn runs(&self) -> bool {
        self.dir.join("running").exists()
    }

    /// What its commands were called with since the last time, but for questions after its state.
    pub fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        drop(fs::remove_file(self.dir.join("calls")));
        calls.lines().filter(|call| *call != "status").map(str::to_owned).collect()
    }

    /// What was told to the command `tell`.
    pub fn told(&self) -> String {
        fs::read_to_string(self.dir.join("told")).unwrap_or_default()
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn live(dir: &Path, port: u16, table: &str, over: &AtomicBool) {
    let (wanted, running) = (dir.join("wanted"), dir.join("running"));
    let is_over = || over.load(Ordering::Relaxed);
    while !is_over() {
        let listener = wanted.exists().then(|| TcpListener::bind(("127.0.0.1", port)).ok()).flatten();
        let (Some(listener), Some(address)) = (listener, address(dir)) else {
            std::thread::sleep(POLL);
            continue;
        };
        listener.set_nonblocking(true).expect("a listener that does not block");
        fs::write(&running, "").expect("it says that it runs");
        let began = Instant::now();
        let dies = fs::read_to_string(dir.join("dies")).ok().and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
        while !is_over() && (wanted.exists() || dir.join("stubborn").exists()) {
            if dies.is_some_and(|after| began.elapsed() > after) {
                drop(fs::remove_file(&wanted));
                break;
            }
            match listener.accept() {
                Ok((stream, _)) => answer(stream, dir, &address, table),
                Err(_) => std::thread::sleep(POLL),
            }
        }
        drop(listener);
        drop(fs::remove_file(&running));
    }
}

/// Which database it is told to ask.
fn address(dir: &Path) -> Option<(Address, String)> {
    let text = fs::read_to_string(dir.join("app.env")).ok()?;
    let of = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=').map(str::to_owned));
    let address = Address { socket_dir: of("DB_HOST")?.into(), port: of("DB_PORT")?.parse().ok()? };
    Some((address, of("DB_NAME")?))
}

fn answer(mut stream: TcpStream, dir: &Path, (address, database): &(Address, String), table: &str) {
    let mut request = [0; 4096];
    // Whoever only wants to know whether somebody listens asks nothing.
    drop(stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(Duration::from_secs(2)))));
    let Ok(read) = stream.read(&mut request) else { return };
    let request = String::from_utf8_lossy(request.get(..read).unwrap_or_default()).into_owned();
    let Some(path) = request.split(' ').nth(1) else { return };
    let (status, body) = match path {
        _ if dir.join("confused").exists() && path != "/health" => ("500 Internal Server Error", "oops".to_owned()),
        "/health" => ("200 OK", "{\"ok\":true}".to_owned()),
        "/count" => match try_psql(address, database, &format!("select count(*) from {table}")) {
            Ok(count) => ("200 OK", format!("{{\"ok\":true,\"count\":{count}}}")),
            Err(_) => ("500 Internal Server Error", "{\"ok\":false}".to_owned()),
        },
        _ => ("404 Not Found", String::new()),
    };
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    drop(stream.write_all(answer.as_bytes()));
}
