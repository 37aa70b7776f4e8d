//! What binds the rows of a chain, and who vouches for how far it has come.

use std::sync::Arc;

use ed25519_dalek::{SigningKey, VerifyingKey};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{
    note::{Note, NoteKind},
    pack::pack_own,
};
use crate::domain::{AuditPlace, AuditRow, Chain, ChainHead, Clock, Link, Receipt, TenantId, hex};

/// The action word of the rows that vouch for what is before them. They hold no event.
pub const CHECKPOINT: &str = "checkpoint";

/// The keys of the audit log: one that binds the rows, one that signs notes.
pub struct AuditKeys {
    /// HMAC-SHA-256 with its key in place.
    mac: Hmac<Sha256>,
    signing: SigningKey,
}

impl AuditKeys {
    /// The keys that hang from the vault's own key for the audit.
    #[must_use]
    pub fn new(seed: &[u8; 32]) -> Self {
        let chain = keyed(seed, b"portcullis-v1 audit chain key");
        let signing = keyed(seed, b"portcullis-v1 audit note signing key");
        Self { mac: mac(&chain), signing: SigningKey::from_bytes(&signing) }
    }

    /// The key that verifies notes. It may be given to anyone.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        self.signing.verifying_key()
    }

    /// A signed note.
    #[must_use]
    pub fn note(&self, note: &Note) -> String {
        note.sign(&self.signing)
    }

    /// What a row that follows `before` hangs by: HMAC-SHA-256 over its place, the link before, and every column, each
    /// with its length, so that no two rows read alike.
    #[must_use]
    pub fn link(&self, before: &ChainHead, row: &AuditRow) -> Link {
        let AuditRow { at, tenant, identity_id, identity_type, action, source_ip, request_id, events, body } = row;
        let mut mac = self.mac.clone();
        mac.update(b"portcullis-v1 audit row");
        mac.update(&before.place.chain.to_be_bytes());
        mac.update(&before.place.number.wrapping_add(1).to_be_bytes());
        mac.update(&before.link.0);
        mac.update(&at.micros().to_be_bytes());
        mac.update(&events.to_be_bytes());
        let texts = [tenant.as_ref().map(TenantId::as_str), identity_id.as_deref(), identity_type.as_deref()];
        let parts = texts.into_iter().chain([Some(&**action), source_ip.as_deref(), Some(&**request_id)]);
        for part in parts.map(|part| part.map(str::as_bytes)).chain([Some(&**body)]) {
            // An absent text is not an empty one.
            let length = part.map_or(u64::MAX, |part| part.len() as u64);
            mac.update(&length.to_be_bytes());
            mac.update(part.unwrap_or_default());
        }
        Link(mac.finalize().into_bytes().into())
    }
}

/// [`Chain`] as the vault keeps it.
pub struct AuditChain {
    keys: Arc<AuditKeys>,
    clock: Arc<dyn Clock>,
    checkpoints: watch::Sender<Option<Receipt>>,
}

impl AuditChain {
    /// A chain under these keys.
    #[must_use]
    pub fn new(keys: Arc<AuditKeys>, clock: Arc<dyn Clock>) -> Self {
        Self { keys, clock, checkpoints: watch::Sender::new(None) }
    }

    /// Tells of the newest durable checkpoint.
    #[must_use]
    pub fn checkpoints(&self) -> watch::Receiver<Option<Receipt>> {
        self.checkpoints.subscribe()
    }

    fn reached(&self, head: &ChainHead) -> String {
        self.keys.note(&Note { kind: NoteKind::Reached, head: *head, at: self.clock.now() })
    }
}

impl Chain for AuditChain {
    fn link(&self, before: &ChainHead, row: &AuditRow) -> Link {
        self.keys.link(before, row)
    }

    fn checkpoint(&self, head: &ChainHead, others: &[ChainHead]) -> AuditRow {
        let checkpoint = Checkpoint { note: self.reached(head), others: others.iter().map(Anchor::of).collect() };
        pack_own(CHECKPOINT, self.clock.now(), json!(checkpoint))
    }

    fn receipt(&self, head: &ChainHead) -> Receipt {
        Receipt(self.reached(head).into())
    }

    fn passed_checkpoint(&self, receipt: &Receipt) {
        self.checkpoints.send_replace(Some(receipt.clone()));
    }
}

/// What the row of a checkpoint says.
#[derive(Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// The signed note that the chain had come to the row before.
    pub(super) note: String,
    /// The other chains' last checkpoints.
    pub(super) others: Vec<Anchor>,
}

/// Another chain's head: chain, number, link in hexadecimal.
#[derive(Serialize, Deserialize)]
pub(super) struct Anchor(u32, i64, String);

impl Anchor {
    fn of(head: &ChainHead) -> Self {
        Self(head.place.chain, head.place.number, hex(&head.link.0))
    }

    pub(super) fn head(&self) -> Option<ChainHead> {
        let Self(chain, number, link) = self;
        let byte = |at: usize| u8::from_str_radix(link.get(at * 2..at * 2 + 2)?, 16).ok();
        let bytes: Vec<u8> = (0..32).map(byte).collect::<Option<_>>()?;
        Some(ChainHead { place: AuditPlace { chain: *chain, number: *number }, link: Link(bytes.try_into().ok()?) })
    }
}

fn keyed(key: &[u8; 32], label: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut mac = mac(key);
    mac.update(label);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
fn mac(key: &[u8; 32]) -> Hmac<Sha256> {
    KeyInit::new_from_slice(key).expect("a key of 32 bytes")
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::domain::Timestamp;

    fn row() -> AuditRow {
        AuditRow {
            at: Timestamp::from_micros(5),
            tenant: TenantId::parse("t"),
            identity_id: Some("sa:x".to_owned()),
            identity_type: Some(Cow::Borrowed("service_account")),
            action: Cow::Borrowed("read"),
            source_ip: None,
            request_id: "req_1".to_owned(),
            events: 1,
            body: b"{}".to_vec(),
        }
    }

    #[test]
    fn a_link_depends_on_everything() {
        let keys = AuditKeys::new(&[1; 32]);
        let before = ChainHead::origin(1);
        let link = keys.link(&before, &row());
        assert_eq!(link, keys.link(&before, &row()));
        let further = ChainHead { place: AuditPlace { chain: 1, number: 1 }, ..before };
        let others = [
            keys.link(&ChainHead::origin(2), &row()),
            keys.link(&further, &row()),
            keys.link(&ChainHead { link: Link([1; 32]), ..before }, &row()),
            AuditKeys::new(&[2; 32]).link(&before, &row()),
            keys.link(&before, &AuditRow { at: Timestamp::from_micros(6), ..row() }),
            keys.link(&before, &AuditRow { tenant: None, ..row() }),
            keys.link(&before, &AuditRow { identity_id: None, ..row() }),
            keys.link(&before, &AuditRow { identity_type: None, ..row() }),
            keys.link(&before, &AuditRow { action: Cow::Borrowed("write"), ..row() }),
            keys.link(&before, &AuditRow { source_ip: Some(String::new()), ..row() }),
            keys.link(&before, &AuditRow { request_id: "req_2".to_owned(), ..row() }),
            keys.link(&before, &AuditRow { events: 2, ..row() }),
            keys.link(&before, &AuditRow { body: b"{} ".to_vec(), ..row() }),
            // The same bytes, cut elsewhere.
            keys.link(&before, &AuditRow { identity_id: Some("sa:xs".to_owned()), ..row() }),
        ];
        for (which, other) in others.iter().enumerate() {
            assert_ne!(*other, link, "{which}");
        }
    }

    #[test]
    fn the_two_keys_differ() {
        let keys = AuditKeys::new(&[1; 32]);
        assert_ne!(keys.signing.to_bytes(), *keyed(&[1; 32], b"portcullis-v1 audit chain key"));
        assert_ne!(keys.verifying_key(), AuditKeys::new(&[2; 32]).verifying_key());
    }
}
