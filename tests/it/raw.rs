//! Requests as bytes: what a well-behaved client would never send.

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::TestServer;

/// An answer, taken apart by hand.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: u16,
    /// The head, in lower case.
    pub head: String,
    pub body: Vec<u8>,
}

impl RawAnswer {
    /// Status and error code; no code where the answer is no envelope.
    pub fn outcome(&self) -> (u16, String) {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        (self.status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A request's bytes: a head that asks to close, and a JSON body where there is one.
pub fn request(method: &str, target: &[u8], token: &str, body: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = [method.as_bytes(), b" ", target, b" HTTP/1.1\r\nHost: vault\r\nConnection: close\r\n"].concat();
    bytes.extend(format!("Authorization: Bearer {token}\r\n").bytes());
    if let Some(body) = body {
        bytes.extend(format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()).bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body.unwrap_or_default());
    bytes
}

/// Sends bytes and reads all that comes back. A server may answer before it has read everything.
pub async fn exchange(server: &TestServer, bytes: &[u8]) -> RawAnswer {
    let address = server.url.strip_prefix("http://").unwrap();
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    let bytes = bytes.to_vec();
    let sending = tokio::spawn(async move {
        // What the server does not want to read any more is not worth an error.
        writer.write_all(&bytes).await.ok();
        writer
    });
    let mut answer = Vec::new();
    reader.read_to_end(&mut answer).await.ok();
    sending.abort();
    parse(&answer)
}

fn parse(answer: &[u8]) -> RawAnswer {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(answer)));
    let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    RawAnswer { status, head, body: answer[end + 4..].to_vec() }
}
