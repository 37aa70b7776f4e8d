//! Looks into another process's memory, as whoever runs as root may.

use std::{collections::BTreeMap, fs, os::unix::fs::FileExt};

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{AeadInOut, Nonce},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use hkdf::Hkdf;
use memchr::memmem::Finder;
use portcullis::crypto::{RootKey, RootKeySource};
use sha2::Sha256;
use sqlx::Row;

const PAGE: u64 = 4_096;
/// Bytes read at once.
const CHUNK: u64 = 1 << 20;

/// What is looked for, by name.
pub type Needles = BTreeMap<String, Vec<u8>>;

/// How often each needle stands in the writable memory of a process. Half a needle counts.
pub fn search(pid: u32, needles: &Needles) -> BTreeMap<String, usize> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let present = fs::File::open(format!("/proc/{pid}/pagemap")).unwrap();
    let halves = |(name, needle): (&String, &Vec<u8>)| {
        let (left, right) = needle.split_at(needle.len() / 2);
        [(name.clone(), Finder::new(left).into_owned()), (name.clone(), Finder::new(right).into_owned())]
    };
    let finders: Vec<_> = needles.iter().flat_map(halves).collect();
    let mut found = BTreeMap::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let place = words.nth(3).unwrap_or("anonymous");
        for (from, to) in runs(&present, u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap()) {
            let mut at = from;
            while at < to {
                // A little of the next chunk, so that nothing is cut in two.
                let mut bytes = vec![0; usize::try_from((to - at).min(CHUNK + 64)).unwrap()];
                let read = memory.read_at(&mut bytes, at).unwrap_or(0);
                for (name, finder) in &finders {
                    let count = finder.find_iter(&bytes[..read]).count();
                    if count > 0 {
                        *found.entry(format!("{name} in {place}")).or_default() += count;
                    }
                }
                at += CHUNK;
            }
        }
    }
    found
}

/// The parts of a mapping that are in memory or swapped.
fn runs(present: &fs::File, from: u64, to: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut entries = vec![0; usize::try_from((to - from) / PAGE * 8).unwrap()];
    let read = present.read_at(&mut entries, from / PAGE * 8).unwrap_or(0);
    for (page, entry) in entries[..read].chunks_exact(8).enumerate() {
        let entry = u64::from_le_bytes(entry.try_into().unwrap());
        if entry >> 62 == 0 {
            continue;
        }
        let start = from + page as u64 * PAGE;
        match runs.last_mut() {
            Some((_, end)) if *end == start => *end += PAGE,
            _ => runs.push((start, start + PAGE)),
        }
    }
    runs
}

/// Every key of a vault on SQLite, derived and unwrapped here, by what the design says and not by the vault's own code.
pub async fn keys_of(data_dir: &std::path::Path) -> Needles {
    let file = data_dir.join("root.key");
    let text = fs::read_to_string(&file).unwrap();
    let root: [u8; 32] = BASE64_STANDARD.decode(text.trim()).unwrap().try_into().unwrap();
    let sibling = |label: &str| {
        let mut key = vec![0; 32];
        Hkdf::<Sha256>::new(None, &root).expand(format!("portcullis-v1 {label}").as_bytes(), &mut key).unwrap();
        key
    };
    let loaded = RootKey::load(&RootKeySource::File(file)).unwrap();
    assert_eq!(sibling("token signing key"), loaded.token_seed().to_vec(), "this is how siblings are derived");
    let mut needles = Needles::from([
        ("root key".to_owned(), root.to_vec()),
        ("root key as text".to_owned(), text.trim().as_bytes().to_vec()),
        ("token seed".to_owned(), sibling("token signing key")),
        ("cursor key".to_owned(), sibling("cursor key")),
        ("policy memory key".to_owned(), sibling("policy memory key")),
    ]);
    let mut database = crate::process::raw(data_dir).await;
    let rows =
        sqlx::query("SELECT tenant, generation, wrapped FROM tenant_keys").fetch_all(&mut database).await.unwrap();
    for row in rows {
        let (tenant, generation): (String, i64) = (row.get(0), row.get(1));
        let place = place(&tenant, "tenant-key", u32::try_from(generation).unwrap());
        needles.insert(format!("key {generation} of {tenant}"), unwrapped(&root, row.get(2), &place));
    }
    let rows = sqlx::query("SELECT name, wrapped FROM vault_keys").fetch_all(&mut database).await.unwrap();
    for row in rows {
        let name: String = row.get(0);
        let place = place(&name, "vault-key", 0);
        needles.insert(format!("the vault's {name} key"), unwrapped(&root, row.get(1), &place));
    }
    needles
}

fn place(owner: &str, purpose: &str, generation: u32) -> Vec<u8> {
    let mut data = b"portcullis-v1".to_vec();
    for part in [owner.as_bytes(), b"", &0_i64.to_be_bytes(), purpose.as_bytes(), &generation.to_be_bytes()] {
        data.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
        data.extend(part);
    }
    data
}

fn unwrapped(root: &[u8], wrapped: &[u8], place: &[u8]) -> Vec<u8> {
    let (salt, body) = wrapped.split_at(32);
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(Some(salt), root).expand(place, &mut key).unwrap();
    let mut body = body.to_vec();
    Aes256Gcm::new(&key.into()).decrypt_in_place(&Nonce::<Aes256Gcm>::default(), place, &mut body).unwrap();
    body
}
