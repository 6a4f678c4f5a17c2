//! What a client sees, on real sockets.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time;
use tokio_util::task::TaskTracker;

use super::body::Bounds;
use super::drain::Stage;
use super::frames::PREFACE;
use super::testing::*;
use crate::relay::body::Closed;

mod requests {
    use super::*;

    #[tokio::test]
    async fn a_connection_serves_one_request_after_another() {
        let server = Running::plain().await;
        let mut client = server.say(get("/peer", "")).await;
        let first = until(&mut client, "tls=false v=HTTP/1.1").await;
        assert!(first.starts_with("HTTP/1.1 200 OK"), "{first}");
        client.write_all(get("/ok", "").as_bytes()).await.unwrap();
        until(&mut client, "\r\n\r\nok").await;
    }

    #[tokio::test]
    async fn two_hosts_none_connect_and_trace_are_refused() {
        let server = Running::plain().await;
        for (request, status) in [
            ("GET /ok HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", "400"),
            ("GET /ok HTTP/1.1\r\n\r\n", "400"),
            ("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", "405"),
            ("TRACE /ok HTTP/1.1\r\nhost: a\r\n\r\n", "405"),
            ("GET http://a/ok HTTP/1.1\r\nhost: a\r\n\r\n", "200"),
        ] {
            let mut client = server.say(request).await;
            let answer = until(&mut client, if status == "200" { "ok" } else { "}}" }).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
            assert_eq!(answer.contains(r#"{"error":{"message":""#), status != "200", "{answer}");
            assert_eq!(answer.contains("allow: GET"), status == "405", "{answer}");
        }
    }

    #[tokio::test]
    async fn a_panic_costs_one_request_only() {
        let server = Running::plain().await;
        let mut client = server.say(get("/panic", "")).await;
        let answer = until(&mut client, "}}").await;
        assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("internal_error"), "{answer}");
        client.write_all(get("/ok", "").as_bytes()).await.unwrap();
        until(&mut client, "\r\n\r\nok").await;
    }

    #[tokio::test]
    async fn an_answer_that_went_out_whole_leaves_nobody_gone() {
        let mut server = Running::plain().await;
        let mut client = server.say(get("/stream", "")).await;
        let sender = server.sender().await;
        sender.send("all").await.unwrap();
        sender.finish();
        until(&mut client, "0\r\n\r\n").await;
        client.write_all(get("/ok", "").as_bytes()).await.unwrap();
        until(&mut client, "\r\n\r\nok").await;
        server.quiet();
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_does_not_end_cleanly() {
        let mut server = Running::plain().await;
        let mut client = server.say(get("/stream", "")).await;
        let sender = server.sender().await;
        sender.send("half").await.unwrap();
        until(&mut client, "half").await;
        sender.abort();
        let rest = to_end(&mut client).await;
        assert!(!rest.contains("0\r\n\r\n"), "{rest:?}");
    }

    #[tokio::test]
    async fn pieces_that_are_written_together_leave_in_one_chunk() {
        let mut server = Running::plain().await;
        let mut client = server.say(get("/stream", "")).await;
        let sender = server.sender().await;
        for piece in ["one", "two", "three"] {
            sender.try_send(piece).unwrap();
        }
        until(&mut client, "B\r\nonetwothree\r\n").await;
    }
}

mod bodies {
    use super::*;

    async fn bounded(limit: usize, deadline: Duration) -> Running {
        let bounds = Bounds { limit, deadline, rate: 0 };
        Running::start(Setup { bounds, ..Setup::default() }).await
    }

    #[tokio::test]
    async fn a_body_within_its_bounds_is_read_whole() {
        let server = bounded(100_000, SOON).await;
        let mut client = server.say(post(90_000, "connection: close\r\n")).await;
        client.write_all(&[b'x'; 90_000]).await.unwrap();
        assert!(to_end(&mut client).await.ends_with("read 90000"));
        let chunked = "POST /body HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
                       3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert!(to_end(&mut server.say(chunked).await).await.ends_with("read 5"));
    }

    #[tokio::test]
    async fn a_body_too_large_is_refused_before_it_is_sent() {
        let server = bounded(1000, SOON).await;
        let mut client = server.say(post(1001, "expect: 100-continue\r\n")).await;
        let answer = to_end(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "no 100 first: {answer}");
        let mut client = server.say(post(1000, "expect: 100-continue\r\n")).await;
        until(&mut client, "HTTP/1.1 100 Continue\r\n\r\n").await;
        client.write_all(&[b'x'; 1000]).await.unwrap();
        until(&mut client, "read 1000").await;
    }

    #[tokio::test]
    async fn a_client_that_sends_it_all_still_reads_the_413() {
        let server = bounded(1000, SOON).await;
        let mut client = server.say(post(8 << 20, "")).await;
        soon(client.write_all(&vec![b'x'; 8 << 20])).await.unwrap();
        assert!(to_end(&mut client).await.starts_with("HTTP/1.1 413 "));
        let head = "POST /body HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut client = server.say(head).await;
        let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
        soon(client.write_all(chunk.repeat(100).as_bytes())).await.unwrap();
        assert!(to_end(&mut client).await.starts_with("HTTP/1.1 413 "));
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_408() {
        let server = bounded(1000, Duration::from_millis(100)).await;
        let mut client = server.say(post(10, "")).await;
        client.write_all(b"half").await.unwrap();
        assert!(to_end(&mut client).await.starts_with("HTTP/1.1 408 "));
    }
}

mod slow_clients {
    use super::*;

    #[tokio::test]
    async fn a_head_that_does_not_come_is_cut_off() {
        let server = Running::with(|s| s.header_timeout = ms(100)).await;
        for start in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET /ok HTTP/1.1\r\nhost: a\r\nx-slow: "]
        {
            let mut client = server.say(start).await;
            let got = to_end(&mut client).await;
            assert!(!got.contains("200 OK"), "{start:?}: {got}");
        }
        let mut client = server.say(get("/ok", "")).await;
        until(&mut client, "\r\n\r\nok").await;
        client.write_all(b"GET /ok HT").await.unwrap();
        assert_eq!(to_end(&mut client).await, "", "the second head, on an idle time of minutes");
    }

    #[tokio::test]
    async fn a_dripping_head_is_cut_off_too() {
        let server = Running::with(|s| s.header_timeout = ms(200)).await;
        let mut client = server.say("GET /ok HTTP/1.1\r\nhost: a\r\n").await;
        let drip = async {
            while client.write_all(b"x-more: 1\r\n").await.is_ok() {
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(drip).await;
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
        let mut server = Running::with(|s| s.idle_timeout = ms(100)).await;
        let mut busy = server.say(get("/stream", "")).await;
        let sender = server.sender().await;
        let mut idle = server.say(get("/ok", "")).await;
        assert!(to_end(&mut idle).await.ends_with("ok"));
        sender.send("still here").await.unwrap();
        until(&mut busy, "still here").await;
        sender.finish();
        to_end(&mut busy).await;
    }

    #[tokio::test]
    async fn a_reader_of_nothing_holds_little_and_is_closed() {
        let mut server = Running::with(|s| s.stall_timeout = ms(300)).await;
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut client = socket.connect(server.address).await.unwrap();
        client.write_all(get("/stream", "").as_bytes()).await.unwrap();
        let sender = server.sender().await;
        let piece = Bytes::from(vec![b'x'; 1024]);
        let mut held = 0;
        while soon(sender.send(piece.clone())).await.is_ok() {
            held += piece.len();
        }
        assert!((64 * 1024..=512 * 1024).contains(&held), "{held}");
        server.gone().await;
    }

    #[tokio::test]
    async fn half_open_connections_do_not_keep_a_good_client_out() {
        let server = Running::plain().await;
        let mut bad = Vec::new();
        for n in 0..200 {
            bad.push(server.say(["", "G", "GET /ok HTTP/1.1\r\n", "PRI * HT"][n % 4]).await);
        }
        assert!(server.ask("/ok").await.ends_with("ok"));
    }
}

mod leaving {
    use super::*;

    #[tokio::test]
    async fn is_seen_while_nothing_has_been_answered() {
        let mut server = Running::plain().await;
        let client = server.say(get("/hang", "")).await;
        server.hangs().await;
        server.quiet();
        drop(client);
        server.gone().await;
    }

    #[tokio::test]
    async fn is_seen_behind_an_extra_byte() {
        let mut server = Running::plain().await;
        let client = server.say(get("/hang", "") + "G").await;
        server.hangs().await;
        drop(client);
        server.gone().await;
        let client = server.say(get("/hang", "") + &get("/ok", "")).await;
        server.hangs().await;
        drop(client);
        server.gone().await;
    }

    #[tokio::test]
    async fn is_seen_when_the_connection_is_reset() {
        let mut server = Running::plain().await;
        let client = server.say(get("/hang", "") + "G").await;
        server.hangs().await;
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        server.gone().await;
    }

    #[tokio::test]
    async fn is_seen_while_streaming() {
        let mut server = Running::plain().await;
        for extra in ["", "G"] {
            let mut client = server.say(get("/stream", "") + extra).await;
            let sender = server.sender().await;
            sender.send("begun").await.unwrap();
            until(&mut client, "begun").await;
            drop(client);
            server.gone().await;
            soon(sender.closed()).await;
            assert_eq!(sender.send("more").await, Err(Closed));
        }
    }

    #[tokio::test]
    async fn is_seen_while_the_body_comes() {
        let mut server = Running::plain().await;
        let mut client = server.say(post(1000, "expect: 100-continue\r\n")).await;
        until(&mut client, "100 Continue").await;
        client.write_all(b"half").await.unwrap();
        drop(client);
        server.gone().await;
    }

    #[tokio::test]
    async fn is_seen_through_tls() {
        let (certificates, trusted) = Certificates::new();
        let setup = Setup { tls: Some(certificates.settings()), ..Setup::default() };
        let mut server = Running::start(setup).await;
        for extra in ["", "G"] {
            let mut client = tls(server.address, &trusted, "http/1.1").await.unwrap();
            client.write_all((get("/hang", "") + extra).as_bytes()).await.unwrap();
            server.hangs().await;
            drop(client);
            server.gone().await;
        }
    }

    #[tokio::test]
    async fn is_seen_on_http2_for_one_stream_and_for_all() {
        let mut server = Running::plain().await;
        let tasks = TaskTracker::new();
        let mut client = h2(TcpStream::connect(server.address).await.unwrap(), &tasks).await;
        let mut other = client.clone();
        {
            let mut one = Box::pin(client.send_request(request("/hang")));
            tokio::select! {
                answer = &mut one => panic!("{answer:?}"),
                () = server.hangs() => {}
            }
        }
        server.gone().await;
        let streaming = soon(other.send_request(request("/stream"))).await.unwrap();
        let sender = server.sender().await;
        assert!(!sender.is_closed(), "the other stream is still read");
        drop(streaming);
        server.gone().await;
        soon(sender.closed()).await;

        let mut hang = Box::pin(other.send_request(request("/hang")));
        tokio::select! {
            answer = &mut hang => panic!("{answer:?}"),
            () = server.hangs() => {}
        }
        drop((hang, client, other));
        server.gone().await;
    }
}

mod http2 {
    use super::*;

    #[tokio::test]
    async fn is_spoken_on_a_plain_listener_and_on_tls_by_alpn() {
        let tasks = TaskTracker::new();
        let plain = Running::plain().await;
        let mut client = h2(TcpStream::connect(plain.address).await.unwrap(), &tasks).await;
        let answer = soon(client.send_request(request("/peer"))).await.unwrap();
        assert_eq!(text(answer).await, "tls=false v=HTTP/2.0");

        let (certificates, trusted) = Certificates::new();
        let setup = Setup { tls: Some(certificates.settings()), ..Setup::default() };
        let secure = Running::start(setup).await;
        let stream = tls(secure.address, &trusted, "h2").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut client = h2(stream, &tasks).await;
        let answer = soon(client.send_request(request("/peer"))).await.unwrap();
        assert_eq!(text(answer).await, "tls=true v=HTTP/2.0");
        let mut client = tls(secure.address, &trusted, "http/1.1").await.unwrap();
        client.write_all(get("/peer", "connection: close\r\n").as_bytes()).await.unwrap();
        assert!(to_end(&mut client).await.ends_with("tls=true v=HTTP/1.1"));
    }

    #[tokio::test]
    async fn a_stream_whose_client_takes_nothing_is_reset_and_the_others_go_on() {
        let mut server = Running::with(|s| s.stall_timeout = ms(200)).await;
        let tasks = TaskTracker::new();
        let mut client = h2(TcpStream::connect(server.address).await.unwrap(), &tasks).await;
        let stalled = soon(client.send_request(request("/stream"))).await.unwrap();
        let sender = server.sender().await;
        let piece = Bytes::from(vec![b'x'; 16 * 1024]);
        while soon(sender.send(piece.clone())).await.is_ok() {}
        server.gone().await;
        let answer = soon(client.send_request(request("/ok"))).await.unwrap();
        assert_eq!(text(answer).await, "ok");
        assert!(soon(stalled.into_body().collect()).await.is_err());
    }

    #[tokio::test]
    async fn a_flood_of_pings_ends_the_connection() {
        let server = Running::plain().await;
        let mut client = server.say(PREFACE).await;
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let (mut read, mut write) = client.split();
        let flood = async { while write.write_all(&ping.repeat(100)).await.is_ok() {} };
        let drink = async { while read.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} };
        soon(Box::pin(async { tokio::join!(flood, drink) })).await;
        assert!(server.ask("/ok").await.ends_with("ok"));
    }

    #[tokio::test]
    async fn an_idle_connection_is_told_goodbye() {
        let server = Running::with(|s| s.idle_timeout = ms(100)).await;
        let tasks = TaskTracker::new();
        let mut client = h2(TcpStream::connect(server.address).await.unwrap(), &tasks).await;
        let answer = soon(client.send_request(request("/ok"))).await.unwrap();
        assert_eq!(text(answer).await, "ok");
        tasks.close();
        soon(tasks.wait()).await;
        assert!(client.is_closed());
    }
}

mod bounds {
    use super::*;

    #[tokio::test]
    async fn a_connection_too_many_is_told_so_and_fits_later() {
        let server = Running::start(Setup { connections: 1, ..Setup::default() }).await;
        let mut first = server.say(get("/ok", "")).await;
        until(&mut first, "\r\n\r\nok").await;
        let refused = server.ask("/ok").await;
        assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1"), "{refused}");
        assert!(refused.contains(r#""code":"overloaded"}"#), "{refused}");
        drop(first);
        let fits = async { while !server.ask("/ok").await.ends_with("\r\n\r\nok") {} };
        soon(fits).await;
    }

    /// Descriptors are bounded for a whole process, so this test runs in one of its own.
    #[test]
    fn running_out_of_descriptors_passes() {
        const ALONE: &str = "FANFOLD_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            return runtime.block_on(Box::pin(run_out_of_descriptors()));
        }
        let name = "server::tests::bounds::running_out_of_descriptors_passes";
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&alone.stdout);
        assert!(alone.status.success() && told.contains("1 passed"), "{told}");
    }

    async fn run_out_of_descriptors() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let server = Running::plain().await;
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(50), maximum }).unwrap();
        let mut clients = Vec::new();
        let error = loop {
            assert!(clients.len() < 100);
            match TcpStream::connect(server.address).await {
                Ok(client) => clients.push(client),
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(24), "{error}");
        time::sleep(Duration::from_millis(20)).await;
        drop(clients);
        let served = async { while !server.ask("/ok").await.ends_with("ok") {} };
        soon(served).await;
    }

    #[tokio::test]
    async fn open_connections_are_counted() {
        #[derive(Default)]
        struct Count(std::sync::atomic::AtomicI64);
        impl metrics::GaugeFn for Count {
            fn increment(&self, by: f64) {
                self.0.fetch_add(by as i64, Ordering::SeqCst);
            }
            fn decrement(&self, by: f64) {
                self.0.fetch_sub(by as i64, Ordering::SeqCst);
            }
            fn set(&self, _: f64) {}
        }
        let count = Arc::new(Count::default());
        let open = metrics::Gauge::from_arc(Arc::clone(&count));
        let server = Running::start(Setup { open, ..Setup::default() }).await;
        let mut clients = [server.say(get("/ok", "")).await, server.say(get("/ok", "")).await];
        for client in &mut clients {
            until(client, "\r\n\r\nok").await;
        }
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        drop(clients);
        server.drain.advance(Stage::Refusing);
        server.ended().await;
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_head_too_large_is_431() {
        let server = Running::plain().await;
        let mut client = server.say(get("/ok", &format!("x-big: {}\r\n", "x".repeat(70_000)))).await;
        assert!(to_end(&mut client).await.starts_with("HTTP/1.1 431 "));
        let many: String = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
        let mut client = server.say(get("/ok", &many)).await;
        assert!(to_end(&mut client).await.starts_with("HTTP/1.1 431 "));
    }

    #[tokio::test]
    async fn a_taken_port_is_told_with_what_to_do() {
        let server = Running::plain().await;
        let options = super::super::listener::Options {
            setting: "listen",
            settings: super::super::settings::Settings::default(),
            tls: None,
            connections: 1,
            open: metrics::Gauge::noop(),
        };
        let taken = super::super::listener::Listener::bind(&server.address.to_string(), options).await;
        let message = taken.unwrap_err().to_string();
        assert!(message.contains("is in use") && message.contains("`listen`"), "{message}");
    }
}

mod draining {
    use super::*;

    #[tokio::test]
    async fn not_ready_still_serves() {
        let server = Running::plain().await;
        server.drain.advance(Stage::NotReady);
        assert!(server.ask("/ok").await.ends_with("ok"));
    }

    #[tokio::test]
    async fn refusing_closes_the_door_and_lets_what_is_in_flight_finish() {
        let mut server = Running::plain().await;
        let mut idle = server.say(get("/ok", "")).await;
        until(&mut idle, "\r\n\r\nok").await;
        let mut untouched = server.say("").await;
        let mut busy = server.say(get("/stream", "")).await;
        let sender = server.sender().await;
        sender.send("first").await.unwrap();
        until(&mut busy, "first").await;

        server.drain.advance(Stage::Refusing);
        assert_eq!(to_end(&mut idle).await, "", "an idle connection is closed");
        assert!(TcpStream::connect(server.address).await.is_err());
        sender.send("last").await.unwrap();
        sender.finish();
        assert!(to_end(&mut busy).await.contains("last\r\n0\r\n\r\n"));
        drop(untouched.shutdown().await);
        server.ended().await;
        server.quiet();
    }

    #[tokio::test]
    async fn http2_finishes_what_is_in_flight_too() {
        let mut server = Running::plain().await;
        let tasks = TaskTracker::new();
        let mut client = h2(TcpStream::connect(server.address).await.unwrap(), &tasks).await;
        let answer = soon(client.send_request(request("/stream"))).await.unwrap();
        let sender = server.sender().await;
        server.drain.advance(Stage::Refusing);
        sender.send("last").await.unwrap();
        sender.finish();
        assert_eq!(text(answer).await, "last");
        server.ended().await;
    }

    #[tokio::test]
    async fn now_gives_a_moment_for_last_words_and_then_cuts() {
        let mut server = Running::plain().await;
        let _hung = server.say(get("/hang", "")).await;
        server.hangs().await;
        let mut busy = server.say(get("/stream", "")).await;
        let sender = server.sender().await;
        server.drain.advance(Stage::Now);
        sender.send("an error event").await.unwrap();
        sender.finish();
        assert!(to_end(&mut busy).await.contains("an error event\r\n0\r\n\r\n"));
        server.ended().await;
        server.gone().await;
    }

    #[tokio::test]
    async fn a_silent_http2_client_does_not_hold_the_process() {
        let server = Running::plain().await;
        let _silent = server.say(PREFACE).await;
        server.drain.advance(Stage::Now);
        server.ended().await;
    }
}

mod certificates {
    use super::*;

    #[tokio::test]
    async fn new_files_are_served_without_a_restart() {
        let (files, old) = Certificates::new();
        let server = Running::start(Setup { tls: Some(files.settings()), ..Setup::default() }).await;
        tls(server.address, &old, "http/1.1").await.unwrap();
        let new = files.renew();
        assert!(tls(server.address, &new, "http/1.1").await.is_err(), "not yet");
        time::pause();
        time::advance(crate::server::tls::LOOK_EVERY).await;
        time::resume();
        soon(async {
            while tls(server.address, &new, "http/1.1").await.is_err() {
                time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert!(tls(server.address, &old, "http/1.1").await.is_err());
    }

    #[tokio::test]
    async fn a_handshake_that_does_not_come_is_cut_off() {
        let (files, _) = Certificates::new();
        let mut setup = Setup { tls: Some(files.settings()), ..Setup::default() };
        setup.settings.header_timeout = ms(100);
        let server = Running::start(setup).await;
        assert_eq!(to_end(&mut server.say("").await).await, "");
        assert_eq!(to_end(&mut server.say(b"\x16\x03\x01").await).await, "");
    }
}
