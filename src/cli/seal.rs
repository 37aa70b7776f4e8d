//! `portcullis seal`, `unseal` and `seal-status`.

use std::{
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
};

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    CommandResult, ConfigFile,
    client::{Client, ConnectionArgs, Exit},
};
use crate::{
    crypto::ask,
    http::{SOCKET, SealStatus},
};

/// The status that `seal-status` ends with for a sealed server.
const SEALED: u8 = 3;

/// Make a running server forget all keys.
#[derive(Args)]
pub struct SealArgs {
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Runs `portcullis seal`.
pub async fn seal(args: SealArgs) -> u8 {
    let sealed = async { Client::new(&args.connection)?.send(Method::POST, "/v1/seal", None).await };
    match sealed.await {
        Ok(_) => {
            println!("sealed: on the server's machine, `portcullis unseal` opens it");
            Exit::Success as u8
        }
        Err(failure) => {
            eprintln!("portcullis: {failure}");
            failure.exit() as u8
        }
    }
}

/// Where the operator's socket is.
#[derive(Args)]
pub struct DoorArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The server's data directory, where the configuration names no other.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs `portcullis seal-status`.
pub async fn status(args: DoorArgs) -> CommandResult {
    let status = args.door()?.ask(Method::GET, "/v1/seal-status", None).await?;
    println!("{}", sentence(status));
    Ok(if status.sealed { SEALED } else { 0 })
}

/// Runs `portcullis unseal`: for a key in shares it takes them one after the other, from the terminal or from standard
/// input, never from the command line, which others can see.
pub async fn unseal(args: DoorArgs) -> CommandResult {
    let door = args.door()?;
    let mut status = door.ask(Method::GET, "/v1/seal-status", None).await?;
    let mut lines = io::stdin().lock();
    while status.sealed {
        let body = match status.threshold {
            None => Zeroizing::new("{}".to_owned()),
            Some(_) => share_body(&next_share(&mut lines)?),
        };
        status = door.ask(Method::POST, "/v1/unseal", Some(body)).await?;
        eprintln!("{}", sentence(status));
    }
    Ok(0)
}

fn sentence(status: SealStatus) -> String {
    match status {
        SealStatus { sealed: false, .. } => "unsealed".to_owned(),
        SealStatus { threshold: Some(wanted), shares, .. } => format!("sealed: {shares} of {wanted} shares are there"),
        SealStatus { .. } => "sealed".to_owned(),
    }
}

fn next_share(lines: &mut impl BufRead) -> Result<Zeroizing<String>, Box<dyn std::error::Error>> {
    if io::stdin().is_terminal() {
        let share = ask("Share: ")?;
        return Ok(Zeroizing::new(std::str::from_utf8(&share)?.to_owned()));
    }
    let mut line = Zeroizing::new(String::with_capacity(256));
    if lines.read_line(&mut line)? == 0 {
        return Err("more shares are needed".into());
    }
    Ok(line)
}

fn share_body(share: &str) -> Zeroizing<String> {
    Zeroizing::new(json!({ "share": share.trim() }).to_string())
}

/// The operator's socket of a running server.
struct Door {
    http: reqwest::Client,
    socket: PathBuf,
}

impl DoorArgs {
    fn door(&self) -> Result<Door, Box<dyn std::error::Error>> {
        let directory = match &self.data_dir {
            Some(directory) => directory.clone(),
            None => self.config.load()?.store.data_dir,
        };
        let socket = directory.join(SOCKET);
        let http = reqwest::Client::builder().unix_socket(socket.as_path()).no_proxy().build()?;
        Ok(Door { http, socket })
    }
}

impl Door {
    async fn ask(
        &self,
        method: Method,
        target: &str,
        body: Option<Zeroizing<String>>,
    ) -> Result<SealStatus, Box<dyn std::error::Error>> {
        let mut request = self.http.request(method, format!("http://portcullis{target}"));
        if let Some(body) = body {
            let body = hyper::body::Bytes::from_owner(body);
            request = request.header(reqwest::header::CONTENT_TYPE, "application/json").body(body);
        }
        let absent = |_| format!("no server answers at {}: is it running, as this user?", self.socket.display());
        let answer = request.send().await.map_err(absent)?;
        let (status, text) = (answer.status(), answer.text().await?);
        if status.is_success() {
            return Ok(serde_json::from_str(&text)?);
        }
        let error: Value = serde_json::from_str(&text)?;
        let message = error.pointer("/error/message").and_then(Value::as_str).unwrap_or("it was refused");
        Err(format!("not unsealed: {message}").into())
    }
}
