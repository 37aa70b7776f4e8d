//! Bodies: read within limits, checked as JSON more strictly than the parser does, then parsed.
//!
//! No message here repeats a value from the body: parsers like to, and the value may be a secret.

use std::{collections::HashSet, fmt, future::poll_fn, io, marker::PhantomData, pin::pin, task::Poll};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use zeroize::Zeroizing;

use super::{error::ApiError, frame::Caller};

/// Deepest nesting.
const MAX_DEPTH: usize = 32;

/// A body's bytes, wiped when dropped, so that a secret on its way in leaves no copy behind.
pub struct JsonBody(Zeroizing<Vec<u8>>);

impl JsonBody {
    /// Reads a body of at most `most` bytes. Where it has to be waited for, the request gives up its place meanwhile:
    /// whoever is slow to send must keep nobody waiting.
    ///
    /// # Errors
    ///
    /// 503 where there is no place afterwards; 413, 415, or 400 for a body that breaks off, and for JSON that is malformed,
    /// too deep, or repeats a key.
    pub async fn read(request: Request, most: usize) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new("unsupported_media_type", "Content-Type must be application/json"));
        }
        let (head, body) = request.into_parts();
        let caller = head.extensions.get::<Caller>();
        let mut body = Limited::new(body, most);
        let mut bytes = Zeroizing::new(Vec::new());
        let mut waited = false;
        let mut tell = || {
            waited = true;
            if let Some(caller) = caller {
                caller.leave();
            }
        };
        while let Some(frame) = await_telling(body.frame(), &mut tell).await {
            let frame = frame.map_err(|error| unread(&*error, most))?;
            if let Some(data) = frame.data_ref() {
                grow(&mut bytes, data);
            }
        }
        if waited && let Some(caller) = caller {
            caller.enter().await?;
        }
        check(&bytes)?;
        Ok(Self(bytes))
    }

    /// The body as the route's type.
    ///
    /// # Errors
    ///
    /// 400 that names the field.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ApiError> {
        let mut deserializer = serde_json::Deserializer::from_slice(&self.0);
        let parsed = serde_path_to_error::deserialize(&mut deserializer).map(|Object(value)| value);
        parsed.map_err(|error| {
            let text = error.inner().to_string();
            let field = error.path().to_string();
            ApiError::invalid(match (named(&text, "unknown field `"), named(&text, "missing field `")) {
                (Some(unknown), _) => format!("The field `{unknown}` is not known here"),
                (_, Some(missing)) => format!("The field `{missing}` is missing"),
                _ if field == "." => "The body must be a JSON object".to_owned(),
                _ if is_plain(&field) => format!("The field `{field}` has the wrong type or form"),
                _ => "A field is not known here, or has the wrong type or form".to_owned(),
            })
        })
    }
}

/// What a future comes to. Where it has to be waited for, that is told first.
async fn await_telling<T>(future: impl Future<Output = T>, tell: &mut impl FnMut()) -> T {
    let mut future = pin!(future);
    match poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
        Poll::Ready(done) => done,
        Poll::Pending => {
            tell();
            future.await
        }
    }
}

/// What is written as an object. A derived struct by itself would take an array of its fields as well.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields)).map(Object)
    }
}

/// For a field that holds a struct.
pub fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

/// For a field that holds a struct or `null`.
pub fn maybe_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let value: Option<Object<T>> = Deserialize::deserialize(deserializer)?;
    Ok(value.map(|Object(value)| value))
}

/// Appends without leaving an unwiped copy behind, as a vector that grows by itself would.
#[inline]
fn grow(bytes: &mut Zeroizing<Vec<u8>>, data: &[u8]) {
    if bytes.capacity() - bytes.len() < data.len() {
        make_room(bytes, data.len());
    }
    bytes.extend_from_slice(data);
}

#[cold]
fn make_room(bytes: &mut Zeroizing<Vec<u8>>, more: usize) {
    let mut larger = Zeroizing::new(Vec::with_capacity((bytes.len() + more).next_power_of_two().max(1_024)));
    larger.extend_from_slice(bytes);
    *bytes = larger;
}

fn unread(error: &(dyn std::error::Error + 'static), most: usize) -> ApiError {
    if error.is::<http_body_util::LengthLimitError>() {
        return ApiError::new("payload_too_large", format!("The body may have {most} bytes here"));
    }
    ApiError::invalid("The body could not be read to its end in time")
}

/// The field that a parser's message names, where it is short and plain enough to be a field.
fn named<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let (name, _) = text.strip_prefix(prefix)?.split_once('`')?;
    is_plain(name).then_some(name)
}

fn is_plain(field: &str) -> bool {
    field.len() <= 64
        && field.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'[' | b']'))
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.eq_ignore_ascii_case("application/merge-patch+json")
}

/// Refuses what is no JSON, nests deeper than [`MAX_DEPTH`], or repeats a key.
fn check(bytes: &[u8]) -> Result<(), ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let checked = Strict { depth: 0 }.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    checked.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let what = match error.to_string() {
            text if text.starts_with(DUPLICATE) => "repeats a key",
            text if text.starts_with(TOO_DEEP) => "nests deeper than 32",
            _ => "is not valid JSON",
        };
        ApiError::invalid(format!("The body {what} (line {line}, column {column})"))
    })
}

const DUPLICATE: &str = "duplicate key";
const TOO_DEEP: &str = "too deep";

/// Walks any JSON value and keeps nothing of it.
#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH { Err(E::custom(TOO_DEEP)) } else { Ok(Self { depth: self.depth + 1 }) }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while items.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut seen: HashSet<String> = HashSet::new();
        while let Some(key) = fields.next_key::<String>()? {
            if !seen.insert(key) {
                return Err(A::Error::custom(DUPLICATE));
            }
            fields.next_value_seed(inner)?;
        }
        Ok(())
    }
}

/// A writer that wipes what it outgrows.
struct WipedWriter(Zeroizing<Vec<u8>>);

impl io::Write for WipedWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        grow(&mut self.0, data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An answer. Its bytes are wiped once they are sent: they may hold secrets.
pub fn reply(body: &impl Serialize) -> Response {
    long_reply(body, 1_024)
}

/// An answer of about so many bytes.
pub fn long_reply(body: &impl Serialize, bytes: usize) -> Response {
    let mut writer = WipedWriter(Zeroizing::new(Vec::with_capacity(bytes)));
    if let Err(error) = serde_json::to_writer(&mut writer, body) {
        tracing::error!(%error, "an answer cannot be written");
        return ApiError::new("internal_error", "").into_response();
    }
    let body = Body::from(Bytes::from_owner(writer.0));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str) -> Result<(), String> {
        check(text.as_bytes()).map_err(|error| error.message)
    }

    #[test]
    fn takes_json_and_nothing_else() {
        assert_eq!(verdict(r#"{"a":[1,-2.5,"x",null,true],"b":{"a":1}}"#), Ok(()));
        for text in ["", "{", "{'a':1}", "{\"a\":1,}", "{\"a\":01}", "{} {}", "nul", "\u{feff}{}"] {
            assert!(verdict(text).unwrap_err().contains("not valid JSON"), "{text}");
        }
    }

    #[test]
    fn refuses_a_repeated_key_at_any_depth() {
        for text in [r#"{"a":1,"a":2}"#, r#"[{"x":{"k":1,"k":1}}]"#, r#"{"a":1,"\u0061":2}"#] {
            assert!(verdict(text).unwrap_err().contains("repeats a key"), "{text}");
        }
    }

    #[test]
    fn refuses_depth_33() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(verdict(&nested(32)), Ok(()));
        assert!(verdict(&nested(33)).unwrap_err().contains("deeper than 32"));
        assert!(verdict(&nested(100_000)).is_err());
    }

    #[test]
    fn messages_repeat_no_value() {
        #[derive(Deserialize, Debug)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only its parsing is of interest")]
        struct Body {
            number: u8,
        }
        for text in [r#"{"number":"canary"}"#, r#"{"number":1,"canary canary":2}"#, r#"["canary"]"#, r#""canary""#] {
            let body = JsonBody(Zeroizing::new(text.as_bytes().to_vec()));
            let message = body.parse::<Body>().unwrap_err().message;
            assert!(!message.contains("canary"), "{message}");
        }
        let body = JsonBody(Zeroizing::new(br#"{"number":1,"extra":2}"#.to_vec()));
        assert_eq!(body.parse::<Body>().unwrap_err().message, "The field `extra` is not known here");
    }
}
