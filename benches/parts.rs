//! What the parts of a batch cost, and the whole of it. What a decision costs is in `policy.rs`.
//!
//!     cargo bench --bench parts
//!
//! The database is on the disk of the temporary directory. The answer's serialisation has no name outside the crate, so
//! it is a part of the whole batch alone.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench that meets what it does not expect must fail")]

mod support;

use std::{hint::black_box, sync::Arc};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use portcullis::{
    auth::{Authenticator, TokenIssuer},
    crypto::{Keyring, RootKey},
    domain::{AuditRow, Clock, PathPattern, SealedValue, SecretPath, SecretValue, TenantId, Timestamp, Version},
    server::{SystemClock, SystemEntropy},
};
use support::{PATHS, Rig, bearer, path};
use tempfile::TempDir;
use tokio::{runtime::Runtime, task::JoinSet};
use zeroize::Zeroizing;
use zeroizing_alloc::ZeroAlloc;

/// As the server has it: wiping what is freed is part of what everything costs.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<std::alloc::System> = ZeroAlloc(std::alloc::System);

fn scene() -> (Runtime, TempDir, Rig) {
    let (runtime, directory) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let rig = runtime.block_on(Rig::new(directory.path(), Arc::new(SystemClock), Arc::new(SystemEntropy)));
    (runtime, directory, rig)
}

fn parsing(criterion: &mut Criterion) {
    let text = "teams/team-7/service-77/database/primary/password";
    let pattern = "teams/*/service-7?/**";
    let (path, parsed) = (SecretPath::parse(text).unwrap(), PathPattern::parse(pattern).unwrap());
    criterion.bench_function("parse a path", |bencher| bencher.iter(|| SecretPath::parse(black_box(text))));
    criterion.bench_function("parse a pattern", |bencher| bencher.iter(|| PathPattern::parse(black_box(pattern))));
    criterion.bench_function("match a pattern", |bencher| bencher.iter(|| parsed.matches(black_box(path.as_str()))));
}

fn tokens(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let issuer = TokenIssuer::new(&[7; 32], "bench".to_owned(), "bench".to_owned()).unwrap();
    let token = issuer.issue(&bearer(), SystemClock.now(), "1").unwrap();
    let fresh = || Authenticator::new(Some(issuer.verifier()), &[], Arc::new(SystemClock)).unwrap();
    criterion.bench_function("verify a token, first sight", |bencher| {
        let verify = |authenticator: &mut Authenticator| runtime.block_on(authenticator.authenticate(&token)).unwrap();
        bencher.iter_batched_ref(fresh, verify, BatchSize::SmallInput);
    });
    let known = fresh();
    criterion.bench_function("verify a token, remembered", |bencher| {
        bencher.iter(|| runtime.block_on(known.authenticate(&token)).unwrap());
    });
}

fn decryption(criterion: &mut Criterion) {
    let (tenant, entropy) = (TenantId::default_tenant(), Arc::new(SystemEntropy));
    let keyring = Keyring::new(RootKey::fresh(&*entropy), entropy);
    keyring.take_in(&tenant, &[keyring.fresh_tenant_key(&tenant, 1).unwrap()]).unwrap();
    let value = SecretValue::new(Zeroizing::new(vec![b'x'; 200]));
    let seal = |n: usize| (path(n), keyring.seal(&tenant, &path(n), Version::FIRST, &value).unwrap());
    let sealed: Vec<(SecretPath, SealedValue)> = (0..PATHS).map(seal).collect();
    for size in [1, PATHS] {
        criterion.bench_function(&format!("decrypt {size} of 200 bytes"), |bencher| {
            bencher.iter(|| {
                for (path, sealed) in sealed.iter().take(size) {
                    black_box(keyring.open(&tenant, path, Version::FIRST, sealed).unwrap());
                }
            });
        });
    }
}

fn store(criterion: &mut Criterion) {
    let (runtime, _directory, rig) = scene();
    let tenant = TenantId::default_tenant();
    let wanted: Vec<_> = (0..PATHS).map(|n| (path(n), None)).collect();
    for size in [1, PATHS] {
        let wanted = wanted.get(..size).unwrap();
        criterion.bench_function(&format!("read {size} from SQLite"), |bencher| {
            bencher.iter(|| runtime.block_on(rig.store.get_many(&tenant, wanted)).unwrap());
        });
    }
    for size in [1, 16] {
        criterion.bench_function(&format!("append {size} at once to the audit log"), |bencher| {
            bencher.iter(|| {
                runtime.block_on(async {
                    let mut appending = JoinSet::new();
                    for _ in 0..size {
                        let store = Arc::clone(&rig.store);
                        appending.spawn(async move { store.append(row(SystemClock.now())).await.unwrap() });
                    }
                    appending.join_all().await
                })
            });
        });
    }
    runtime.block_on(rig.store.close());
}

fn batches(criterion: &mut Criterion) {
    let (runtime, _directory, rig) = scene();
    criterion.bench_function("batch of 100, without its connection", |bencher| {
        bencher.iter(|| runtime.block_on(rig.serve(rig.request())));
    });
    runtime.block_on(rig.store.close());
}

/// The row of a read of one secret, as long as they are.
fn row(at: Timestamp) -> AuditRow {
    AuditRow {
        at,
        tenant: Some(TenantId::default_tenant()),
        identity_id: Some("sa:checkout".to_owned()),
        identity_type: Some("service_account".into()),
        action: "read".into(),
        source_ip: Some("127.0.0.1".to_owned()),
        request_id: "req_0123456789abcdef0123456789abcdef".to_owned(),
        events: 1,
        body: vec![b'x'; 420],
    }
}

criterion_group!(benches, parsing, tokens, decryption, store, batches);
criterion_main!(benches);
