//! Real sockets, and those who misbehave on them.

use std::os::unix::fs::MetadataExt;

use tokio::net::{TcpStream, UnixStream};

use super::*;

fn in_runtime(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
}

fn open_tcp() -> (Endpoint, SocketAddr) {
    let listen = "127.0.0.1:0".parse().unwrap();
    let endpoint = Endpoint::open(&listen, Exposure::Loopback, None).unwrap();
    let address = endpoint.tcp_address().unwrap();
    (endpoint, address)
}

/// Answers every scrape with this text, and counts them.
fn answer_scrapes(mut endpoint: Endpoint, text: &'static str) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(scrape) = endpoint.scrapes.recv().await {
            let _gone = scrape.answer.send(format!("{text} {:?}", scrape.format));
        }
    })
}

async fn send_request(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[test]
fn a_scrape_gets_what_the_service_says_and_a_second_request_gets_nothing() {
    in_runtime(async {
        let (endpoint, address) = open_tcp();
        let _service = answer_scrapes(endpoint, "numbers");
        let one = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        let stream = TcpStream::connect(address).await.unwrap();
        let answer = send_request(stream, &one.repeat(2)).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\nContent-Length: 18\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nnumbers Prometheus"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1);
    });
}

#[test]
fn head_has_the_length_and_no_body() {
    in_runtime(async {
        let (endpoint, address) = open_tcp();
        let _service = answer_scrapes(endpoint, "numbers");
        let stream = TcpStream::connect(address).await.unwrap();
        let answer = send_request(stream, "HEAD /metrics HTTP/1.1\r\n\r\n").await;
        assert!(answer.contains("\r\nContent-Length: 18\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    });
}

#[test]
fn nothing_else_reaches_the_service() {
    in_runtime(async {
        let (mut endpoint, address) = open_tcp();
        let long = format!(
            "GET /metrics HTTP/1.1\r\nCookie: {}\r\n\r\n",
            "a".repeat(100_000)
        );
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("DELETE /metrics HTTP/1.1\r\n\r\n", "405"),
            ("SSH-2.0-OpenSSH_9.2\r\n", "400"),
            (long.as_str(), "431"),
        ] {
            let stream = TcpStream::connect(address).await.unwrap();
            let answer = send_request(stream, request).await;
            let expected = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&expected), "{request:.40}: {answer}");
        }
        assert!(endpoint.scrapes.try_recv().is_err());
    });
}

#[test]
fn those_who_say_nothing_do_not_keep_others_away_for_ever() {
    in_runtime(async {
        tokio::time::pause();
        let (endpoint, address) = open_tcp();
        let _service = answer_scrapes(endpoint, "numbers");
        let mut silent = Vec::new();
        for _ in 0..MAX_CONVERSATIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let stream = TcpStream::connect(address).await.unwrap();
        // Time is simulated: it passes as soon as everybody waits.
        let answer = send_request(stream, "GET /metrics HTTP/1.1\r\n\r\n").await;
        assert!(answer.ends_with("numbers Prometheus"), "{answer}");
    });
}

#[test]
fn a_socket_in_the_file_system_is_for_root_and_goes_with_the_service() {
    in_runtime(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.sock");
        let listen = ListenAddress::Unix(path.clone());
        let open = || Endpoint::open(&listen, Exposure::Loopback, None);
        let endpoint = open().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // A second one does not take it away from the first.
        let error = format!("{:#}", open().err().unwrap());
        assert!(error.contains("another process listens there"), "{error}");
        let service = answer_scrapes(endpoint, "numbers");
        let stream = UnixStream::connect(&path).await.unwrap();
        let accept = "Accept: application/openmetrics-text; version=1.0.0";
        let answer = send_request(
            stream,
            &format!("GET /metrics HTTP/1.0\r\n{accept}\r\n\r\n"),
        )
        .await;
        assert!(answer.contains("\r\nContent-Type: application/openmetrics-text"));
        assert!(answer.ends_with("numbers OpenMetrics"), "{answer}");
        service.abort();
        let _cancelled = service.await;
        assert!(!path.exists());
    });
}

#[test]
fn a_dead_socket_is_replaced_and_a_file_is_not() {
    in_runtime(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.sock");
        let listen = ListenAddress::Unix(path.clone());
        let open = || Endpoint::open(&listen, Exposure::Loopback, None);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(open().unwrap());
        fs::write(&path, "precious").unwrap();
        let error = format!("{:#}", open().err().unwrap());
        assert!(error.contains("something else lies there"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    });
}

#[test]
fn the_network_is_refused_before_anything_listens() {
    in_runtime(async {
        let listen = "0.0.0.0:0".parse().unwrap();
        let error = Endpoint::open(&listen, Exposure::Loopback, None).err();
        assert!(
            error
                .unwrap()
                .to_string()
                .contains("not a loopback address")
        );
    });
}
