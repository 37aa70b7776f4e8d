//! Changing secrets. A change and its audit event are one transaction.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::value::RawValue;

use super::{Account, Caller, DEADLINE, Fault, LookUp, Vault, within};
use crate::{
    audit::{self, Event},
    domain::{
        Action, Decision, Denial, DenialCode, InputRead, Metadata, MetadataText, SecretPath, SecretType, SecretValue,
        Timestamp, Verdict, Version,
    },
    policy::Subject,
    store::{Change, ChangeRequest, Committed, EditMetadata, Put, Refusal, Seal, StoreError, Witness},
};

/// A new version of a secret.
pub struct PutRequest {
    /// Its value.
    pub data: SecretValue,
    /// The names of the value's top-level fields.
    pub fields: Vec<String>,
    /// What it is said to hold; as before where none.
    pub secret_type: Option<SecretType>,
    /// What may be known of it; as before where none.
    pub metadata: Option<Metadata>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// How many versions to keep; as before where none.
    pub max_versions: Option<u32>,
    /// The version that must be the newest; 0: there must be none.
    pub expected_version: Option<i64>,
}

/// A change that was decided about, on its way to the store.
struct Decided {
    action: Action,
    decision: Decision,
    inputs: Vec<InputRead>,
}

impl Vault {
    /// Writes a new version.
    ///
    /// # Errors
    ///
    /// [`Fault`], recorded; nothing is written then.
    pub async fn put(self: &Arc<Self>, caller: &Caller, path: SecretPath, put: PutRequest) -> Result<Committed, Fault> {
        self.ensure_newest_keys(&caller.principal.tenant).await?;
        let record = self.look_up_for_policies(caller, &path).await?;
        let permitted = self.permit(caller, Action::Write, &path, record, &put.fields).await?;
        let change = Put {
            secret_type: put.secret_type,
            metadata: put.metadata.as_ref().map(MetadataText::from),
            expires_at: put.expires_at,
            max_versions: put.max_versions,
            expected_version: put.expected_version,
            source: None,
            seal: self.seal(caller, &path, put.data),
        };
        self.commit(caller, path, permitted, Change::Put(change)).await
    }

    /// Writes an old version's value as a new version.
    ///
    /// # Errors
    ///
    /// [`Fault`], recorded; nothing is written then.
    pub async fn roll_back(
        self: &Arc<Self>,
        caller: &Caller,
        path: SecretPath,
        version: Version,
    ) -> Result<Committed, Fault> {
        self.ensure_newest_keys(&caller.principal.tenant).await?;
        let asked = [(path.clone(), Some(version))];
        let record = self.look_up_to_open(&caller.principal.tenant, &asked).await?.pop().unwrap_or(Ok(None));
        // Opened before the decision, which is about the fields that would be written; nothing of it leaves here.
        let old = self.old_value(caller, record.clone(), version);
        let fields = old.as_ref().map_or(&[][..], |(_, fields, _)| fields);
        let permitted = self.permit(caller, Action::Write, &path, record, fields).await?;
        let (value, secret_type) = match old {
            Ok((value, _, secret_type)) => (value, secret_type),
            Err(fault) => return Err(self.refuse(caller, path, permitted, fault).await),
        };
        let change = Put {
            secret_type: Some(secret_type),
            metadata: None,
            expires_at: None,
            max_versions: None,
            expected_version: None,
            source: Some(version),
            seal: self.seal(caller, &path, value),
        };
        self.commit(caller, path, permitted, Change::Put(change)).await
    }

    /// Hides a secret; it can be restored for a while.
    ///
    /// # Errors
    ///
    /// [`Fault`], recorded; nothing is changed then.
    pub async fn soft_delete(self: &Arc<Self>, caller: &Caller, path: SecretPath) -> Result<Committed, Fault> {
        let recoverable_until = caller.context.now.plus(self.recoverable_for);
        self.change(caller, Action::Delete, path, Change::SoftDelete { recoverable_until }).await
    }

    /// Removes a secret with all its versions and their keys.
    ///
    /// # Errors
    ///
    /// [`Fault`], recorded; nothing is changed then.
    pub async fn purge(self: &Arc<Self>, caller: &Caller, path: SecretPath) -> Result<Committed, Fault> {
        self.change(caller, Action::Delete, path, Change::Purge).await
    }

    /// Removes the values and keys of some versions.
    ///
    /// # Errors
    ///
    /// [`Fault`], recorded; nothing is changed then.
    pub async fn destroy(
        self: &Arc<Self>,
        caller: &Caller,
        path: SecretPath,
        versions: Vec<Version>,
    ) -> Result<Committed, Fault> {
        self.change(caller, Action::Delete, path, Change::Destroy(versions)).await
    }

    /// Undoes a soft delete.
    ///
    /// # Errors
    ///
    /// [`Fault`], recorded; nothing is changed then.
    pub async fn restore(self: &Arc<Self>, caller: &Caller, path: SecretPath) -> Result<Committed, Fault> {
        self.change(caller, Action::Write, path, Change::Restore).await
    }

    /// Rewrites a secret's metadata.
    ///
    /// # Errors
    ///
    /// [`Fault`], recorded; nothing is changed then.
    pub async fn edit_metadata(
        self: &Arc<Self>,
        caller: &Caller,
        path: SecretPath,
        edit: EditMetadata,
    ) -> Result<Committed, Fault> {
        self.change(caller, Action::Write, path, Change::EditMetadata(edit)).await
    }

    async fn change(
        self: &Arc<Self>,
        caller: &Caller,
        action: Action,
        path: SecretPath,
        change: Change,
    ) -> Result<Committed, Fault> {
        let record = self.look_up_for_policies(caller, &path).await?;
        let permitted = self.permit(caller, action, &path, record, &[]).await?;
        self.commit(caller, path, permitted, change).await
    }

    /// What the policies may ask about, where they ask at all.
    async fn look_up_for_policies(&self, caller: &Caller, path: &SecretPath) -> Result<LookUp, Fault> {
        if caller.policies.sees_secrets() {
            self.look_up_one(&caller.principal.tenant, path, None).await
        } else {
            Ok(Ok(None))
        }
    }

    /// Decides. A denial is recorded here; an allowed change is recorded with what becomes of it. Under field
    /// obligations a write may set the permitted fields alone.
    async fn permit(
        &self,
        caller: &Caller,
        action: Action,
        path: &SecretPath,
        record: LookUp,
        fields: &[String],
    ) -> Result<Decided, Fault> {
        let subject = Subject { path: path.clone(), secret: record.unwrap_or_default(), written_fields: fields.into() };
        let (decision, inputs) = self.decide_one(caller, action, subject).await?;
        let denial = match &decision.verdict {
            Verdict::Allow(filter) if fields.iter().all(|field| filter.permits(field)) => None,
            Verdict::Allow(_) => Some(Denial {
                code: DenialCode::AccessDenied,
                message: "A policy permits writing other fields of this secret alone".to_owned(),
                reason: Some("field_not_permitted".to_owned()),
            }),
            Verdict::Deny(denial) => Some(denial.clone()),
        };
        let permitted = Decided { action, decision, inputs };
        match denial {
            None => Ok(permitted),
            Some(denial) => Err(self.refuse(caller, path.clone(), permitted, Fault::Denied(denial)).await),
        }
    }

    /// Records a change that is not made: denied, or permitted and impossible.
    async fn refuse(&self, caller: &Caller, path: SecretPath, permitted: Decided, fault: Fault) -> Fault {
        let decided = (permitted.decision, permitted.inputs);
        let account = Account::of_one(permitted.action, path, fault.code(), decided);
        self.record(caller, account).await.err().unwrap_or(fault)
    }

    async fn commit(
        self: &Arc<Self>,
        caller: &Caller,
        path: SecretPath,
        permitted: Decided,
        change: Change,
    ) -> Result<Committed, Fault> {
        let timer = std::time::Instant::now();
        let request = ChangeRequest {
            tenant: caller.principal.tenant.clone(),
            path: path.clone(),
            by: Arc::clone(&caller.principal.id),
            at: caller.context.now,
            change,
            witness: self.witness(caller, path, permitted),
        };
        let outcome = within(DEADLINE, self.store.commit(request)).await;
        self.metrics.store_write(timer.elapsed());
        if matches!(outcome, Err(StoreError::RetiredKey)) {
            self.fetched.forget(&caller.principal.tenant);
        }
        let (outcome, receipt) = outcome?;
        caller.context.receipt.put(receipt);
        outcome.map_err(|refusal| {
            if refusal == Refusal::Damaged {
                self.metrics.unreadable_record();
            }
            refusal.into()
        })
    }

    fn witness(self: &Arc<Self>, caller: &Caller, path: SecretPath, permitted: Decided) -> Witness {
        let (vault, caller) = (Arc::clone(self), caller.clone());
        Box::new(move |outcome| {
            let (code, version) = match outcome {
                Ok(committed) => (audit::OK, Some(committed.head.latest)),
                Err(refusal) => (Fault::from(*refusal).code(), None),
            };
            let event = Event { path: Some(path), version, code, decision: Some(permitted.decision) };
            let account =
                Account { action: permitted.action, batch_size: None, inputs: permitted.inputs, events: vec![event] };
            vault.row(&caller, account)
        })
    }

    fn seal(self: &Arc<Self>, caller: &Caller, path: &SecretPath, value: SecretValue) -> Seal {
        let (vault, tenant, path) = (Arc::clone(self), caller.principal.tenant.clone(), path.clone());
        Box::new(move |version| {
            let sealed = vault.keyring.seal(&tenant, &path, version, &value);
            sealed.inspect_err(|error| tracing::error!(%tenant, %path, %error, "a value cannot be sealed")).ok()
        })
    }

    fn old_value(
        &self,
        caller: &Caller,
        record: LookUp,
        version: Version,
    ) -> Result<(SecretValue, Vec<String>, SecretType), Fault> {
        let (record, _) = super::reading::readable(record?, Some(version), caller.context.now)?;
        let old = record.version.as_ref().ok_or(Fault::VersionNotFound)?;
        let sealed = old.sealed.as_ref().ok_or(Fault::Unreadable)?;
        let value = self.reveal(&caller.principal.tenant, &record.head.path, version, sealed)?;
        let fields = field_names(value.expose()).ok_or(Fault::Unreadable)?;
        Ok((value, fields, old.secret_type))
    }
}

/// The names of an object's top-level fields; none where the text is no object.
#[must_use]
pub fn field_names(object: &[u8]) -> Option<Vec<String>> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(object).ok()?;
    Some(fields.into_keys().collect())
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Absent => Self::SecretNotFound,
            Refusal::VersionAbsent => Self::VersionNotFound,
            Refusal::VersionConflict(newest) => Self::VersionConflict(newest),
            Refusal::VersionsExhausted => Self::VersionConflict(i64::from(i32::MAX)),
            Refusal::Deleted => Self::SecretExists,
            Refusal::MetadataTooLarge => Self::MetadataTooLarge,
            Refusal::Damaged => Self::Unreadable,
        }
    }
}
