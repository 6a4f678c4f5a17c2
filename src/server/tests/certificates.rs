//! TLS.

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
