//! More requests than the server can work on.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};

use crate::{
    process::{self, execute},
    raw,
    support::{Answer, Options, TestServer, metric},
};

async fn with_places(places: usize) -> TestServer {
    let config = format!("[server]\nmax_requests = {places}\n");
    let server = TestServer::start(Options { config, ..Options::default() }).await;
    assert_eq!(server.root().store("a", json!({"k": 1})).await, 1);
    server
}

async fn timed(begun: Instant, answer: impl Future<Output = Answer>) -> (Answer, Duration) {
    (answer.await, begun.elapsed())
}

#[tokio::test]
async fn who_finds_no_place_is_turned_away_and_nobody_else() {
    let server = with_places(2).await;
    let root = server.root();
    let mut database = process::raw(&server.data_dir).await;
    execute(&mut database, "BEGIN IMMEDIATE").await;
    // These wait for the audit log.
    let mut waiting = JoinSet::new();
    for _ in 0..2 {
        let root = root.clone();
        waiting.spawn(async move { root.get("/v1/secrets/a").await.status() });
    }
    sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    // Two may wait for a place, for a while; whoever comes then may not.
    let (one, batch, third) = tokio::join!(
        timed(begun, root.get("/v1/secrets/a")),
        timed(begun, root.post("/v1/secrets/batch", json!({"paths": ["a"]}))),
        timed(begun, async {
            sleep(Duration::from_millis(20)).await;
            root.get("/v1/secrets/a").await
        }),
    );
    for (_, took) in [&one, &batch] {
        assert!(*took >= Duration::from_millis(100) && *took < Duration::from_secs(1), "{took:?}");
    }
    assert!(third.1 < one.1.min(batch.1), "{:?}", third.1);
    let mut turned_away = Vec::new();
    for (answer, _) in [one, batch, third] {
        assert_eq!(answer.header("retry-after").as_deref(), Some("1"));
        turned_away.push(answer.header("x-request-id").unwrap());
        let message = answer.expect_error(503, "service_unavailable").await;
        assert!(message.contains("busy"), "{message}");
    }
    let health = server.http.get(format!("{}/v1/health", server.url)).send().await.unwrap();
    assert_eq!(health.status(), 200, "who asks how the server is needs no place");
    assert_eq!(metric(&server, "portcullis_turned_away_requests_total").await, 3);
    execute(&mut database, "ROLLBACK").await;
    assert_eq!(waiting.join_all().await, [200, 200]);
    assert_eq!(root.get("/v1/secrets/a").await.status(), 200, "places are given back");
    for id in turned_away {
        assert_eq!(server.audit(&format!("&request_id={id}")).await, Vec::<serde_json::Value>::new());
    }
}

#[tokio::test]
async fn when_many_are_turned_away_they_hear_of_it_later() {
    let server = with_places(1).await;
    let root = server.root();
    let mut database = process::raw(&server.data_dir).await;
    execute(&mut database, "BEGIN IMMEDIATE").await;
    let mut all = JoinSet::new();
    for _ in 0..20 {
        let root = root.clone();
        all.spawn(async move { timed(Instant::now(), root.get("/v1/secrets/a")).await });
    }
    let (mut early, mut late) = (0, 0);
    for (answer, took) in all.join_all().await {
        assert_eq!(answer.status(), 503);
        assert!(took < Duration::from_secs(6), "{took:?}");
        *if took < Duration::from_millis(500) { &mut early } else { &mut late } += 1;
    }
    // One hears it at once, one after it has waited for a place, few soon after; one is not turned away, but waits for the log.
    assert!(early >= 1 && late >= 15, "{early} early, {late} late");
    execute(&mut database, "ROLLBACK").await;
    assert_eq!(root.get("/v1/secrets/a").await.status(), 200);
}

#[tokio::test]
async fn nobody_is_kept_waiting_by_a_server_that_stops() {
    let mut server = with_places(1).await;
    let root = server.root();
    let mut database = process::raw(&server.data_dir).await;
    execute(&mut database, "BEGIN IMMEDIATE").await;
    let mut all = JoinSet::new();
    for _ in 0..20 {
        let root = root.clone();
        all.spawn(async move { timed(Instant::now(), root.get("/v1/secrets/a")).await });
    }
    sleep(Duration::from_millis(500)).await;
    execute(&mut database, "ROLLBACK").await;
    server.stop().await;
    let mut late = 0;
    for (answer, took) in all.join_all().await {
        assert!(took < Duration::from_secs(2), "{took:?}");
        late += usize::from(answer.status() == 503 && took >= Duration::from_millis(500));
    }
    assert!(late >= 15, "{late}");
}

#[tokio::test]
async fn who_is_slow_to_send_a_body_takes_no_place() {
    let server = with_places(1).await;
    let root = server.root();
    let request = raw::request("PUT", b"/v1/secrets/slow", &root.token, Some(br#"{"data": {"k": 1}}"#));
    let (early, late) = request.split_at(request.len() - 5);
    let mut connections = Vec::new();
    for _ in 0..3 {
        let mut connection = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
        connection.write_all(early).await.unwrap();
        connections.push(connection);
    }
    sleep(Duration::from_millis(200)).await;
    assert_eq!(root.get("/v1/secrets/a").await.status(), 200);
    for mut connection in connections {
        connection.write_all(late).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    }
    assert_eq!(metric(&server, "portcullis_turned_away_requests_total").await, 0);
}
