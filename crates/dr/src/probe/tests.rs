use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use pgark_testkit::Scratch;

use super::*;

const SECONDS: Duration = Duration::from_secs(20);

/// Answers one request after the other with these, each after a pause, and hands out the requests.
fn server(answers: Vec<(Duration, String)>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let (send, receive) = channel();
    std::thread::spawn(move || {
        for (pause, answer) in answers {
            let (mut client, _) = listener.accept().expect("a client");
            let mut request = vec![];
            let mut buf = [0; 4096];
            while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                let n = client.read(&mut buf).expect("a request");
                assert!(n > 0, "it ended early");
                request.extend_from_slice(&buf[..n]);
            }
            std::thread::sleep(pause);
            // Who does not wait for the answer is gone.
            let _ = client.write_all(answer.as_bytes());
            let _ = send.send(String::from_utf8(request).expect("text"));
        }
    });
    (address, receive)
}

fn answer(status: &str, body: &str) -> (Duration, String) {
    let length = body.len();
    (Duration::ZERO, format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"))
}

fn probe(address: &str) -> HttpProbe {
    HttpProbe {
        url: Url::parse(&format!("http://{address}/health?key=hidden")).expect("a URL"),
        method: Method::GET,
        statuses: vec![],
        latency_max: None,
        json: vec![],
        contains: None,
        headers: vec![],
        secret_headers: vec![],
        ca_file: None,
    }
}

fn once(probe: HttpProbe) -> Found {
    Probe::Http(Box::new(probe)).try_once(SECONDS).expect("tried")
}

#[test]
fn an_answer_is_judged_by_all_that_was_asked_for() {
    let body = r#"{"status":"ok","db":{"rows":3}}"#;
    let (address, _) = server(vec![
        answer("200 OK", body),
        answer("200 OK", body),
        answer("204 No Content", ""),
        answer("200 OK", "ok"),
    ]);
    let asked = HttpProbe {
        json: vec![("/status".into(), "ok".into()), ("/db/rows".into(), 3.into())],
        contains: Some("\"rows\":3".into()),
        ..probe(&address)
    };
    let found = once(asked.clone());
    assert!(found.ok && found.status == Some(200), "{found:?}");
    let wrong = HttpProbe {
        json: vec![("/status".into(), "down".into()), ("/none".into(), 1.into())],
        contains: Some("everything".into()),
        statuses: vec![201],
        ..asked
    };
    let why = once(wrong).why;
    assert_eq!(
        why,
        [
            "status 200",
            "the answer does not contain \"everything\"",
            "/status is not \"down\"",
            "/none is not in the answer"
        ]
    );
    assert!(once(probe(&address)).ok, "204");
    let not_json = HttpProbe { json: vec![("/a".into(), 1.into())], ..probe(&address) };
    assert_eq!(once(not_json).why, ["the answer is not JSON"]);
}

#[test]
fn failures_of_the_application_are_told_apart() {
    let redirect = (
        Duration::ZERO,
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            .to_owned(),
    );
    let slow = (Duration::from_millis(400), answer("200 OK", "").1);
    let (address, _) = server(vec![answer("503 Service Unavailable", ""), redirect, slow.clone(), slow]);
    let down = once(probe(&address));
    assert!(!down.ok && down.is_server_error(), "{down:?}");
    let elsewhere = once(probe(&address));
    assert!(!elsewhere.ok && elsewhere.status == Some(302) && !elsewhere.is_server_error(), "{elsewhere:?}");
    let late = once(HttpProbe { latency_max: Some(Duration::from_millis(300)), ..probe(&address) });
    assert!(!late.ok && late.status == Some(200) && late.why[0].contains("may take 300"), "{late:?}");
    let never = Probe::Http(Box::new(probe(&address))).try_once(Duration::from_millis(100)).expect("tried");
    assert_eq!(never.why, ["no answer within 0.1 s"]);
    let nobody = once(probe("127.0.0.1:1"));
    assert!(!nobody.ok && nobody.status.is_none() && !nobody.why[0].contains("hidden"), "{nobody:?}");
}

#[test]
fn secrets_come_from_files_and_are_not_shown() {
    let dir = Scratch::new("probe");
    let secret = dir.file("token", b"Bearer s3cret\n", 0o600);
    let (address, requests) = server(vec![answer("200 OK", "")]);
    let asked = HttpProbe {
        headers: vec![("X-Asked-By".into(), "pgark".into())],
        secret_headers: vec![("Authorization".into(), secret)],
        ..probe(&address)
    };
    assert_eq!(Probe::Http(Box::new(asked.clone())).to_string(), format!("GET http://{address}/health"));
    assert!(once(asked.clone()).ok);
    let request = requests.recv_timeout(SECONDS).expect("a request").to_ascii_lowercase();
    assert!(
        request.contains("authorization: bearer s3cret\r\n") && request.contains("x-asked-by: pgark\r\n"),
        "{request}"
    );
    let missing = HttpProbe { secret_headers: vec![("A".into(), dir.path().join("none"))], ..asked.clone() };
    assert_eq!(Probe::Http(Box::new(missing)).try_once(SECONDS).expect_err("no file").code(), "E-FILE");
    let two_lines = HttpProbe { headers: vec![("A".into(), "b\r\nHost: c".into())], ..asked };
    let error = Probe::Http(Box::new(two_lines)).try_once(SECONDS).expect_err("two lines");
    assert_eq!(error.code(), "E-PROBE-HEADER");
}

#[test]
fn an_endless_answer_is_cut_off() {
    let endless = "x".repeat(3 * BODY_BYTES_MAX);
    let (address, _) = server(vec![answer("200 OK", &endless)]);
    assert!(once(HttpProbe { contains: Some("xxx".into()), ..probe(&address) }).ok);
}

#[test]
fn readiness_is_waited_for_and_not_for_ever() {
    let (address, _) = server(vec![answer("503 X", ""), answer("503 X", ""), answer("200 OK", "")]);
    let ready = Probe::Http(Box::new(probe(&address)));
    let pause = Duration::from_millis(50);
    assert!(ready.until_ok(SECONDS, SECONDS, pause, &Ctx::silent()).expect("tried").ok);
    let found = Probe::Tcp("127.0.0.1:1".into()).until_ok(Duration::from_millis(300), SECONDS, pause, &Ctx::silent());
    assert!(!found.expect("tried").ok);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let open = Probe::Tcp(listener.local_addr().expect("its address").to_string());
    assert!(open.try_once(SECONDS).expect("tried").ok);
}
