//! Changing secrets. A change and its audit event are one transaction.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::value::RawValue;

use super::{Account, Caller, DEADLINE, Fault, LookUp, Vault, within};
use crate::{
    audit::{self, Event},
    domain::{
        Action, Decision, Denial, DenialCode, FieldFilter, InputRead, Metadata, MetadataText, SecretPath, SecretType,
        SecretValue, Timestamp, Verdict, Version,
    },
    policy::{PolicySet, Subject},
    store::{Change, ChangeRequest, Committed, EditMetadata, Put, Refusal, Seal, Witness},
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

/// A permitted change, on its way to the store.
struct Permitted {
    set: Arc<PolicySet>,
    action: Action,
    decision: Decision,
    inputs: Vec<InputRead>,
    filter: FieldFilter,
    /// What was looked up for the policies or for a rollback.
    record: LookUp,
}

impl Vault {
    /// Writes a new version.
    ///
    /// # Errors
    ///
    /// [`Fault`], recorded; nothing is written then.
    pub async fn put(self: &Arc<Self>, caller: &Caller, path: SecretPath, put: PutRequest) -> Result<Committed, Fault> {
        let fields = put.fields.as_slice().into();
        let permitted = self.permit(caller, Action::Write, &path, None, fields).await?;
        let permitted = self.permit_fields(caller, &path, permitted, &put.fields).await?;
        self.ensure_keys(&caller.principal.tenant, true).await?;
        let change = Put {
            secret_type: put.secret_type,
            metadata: put.metadata.as_ref().map(MetadataText::from),
            expires_at: put.expires_at,
            max_versions: put.max_versions,
            expected_version: put.expected_version,
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
        let permitted = self.permit(caller, Action::Write, &path, Some(version), Arc::default()).await?;
        self.ensure_keys(&caller.principal.tenant, true).await?;
        let opened = self.old_value(caller, permitted.record.clone(), version);
        let (value, fields, old) = match opened {
            Ok(opened) => opened,
            Err(fault) => return Err(self.refuse(caller, path, permitted, fault).await),
        };
        let permitted = self.permit_fields(caller, &path, permitted, &fields).await?;
        let change = Put {
            secret_type: Some(old),
            metadata: None,
            expires_at: None,
            max_versions: None,
            expected_version: None,
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
        let permitted = self.permit(caller, action, &path, None, Arc::default()).await?;
        self.commit(caller, path, permitted, change).await
    }

    /// Decides. A denial is recorded here; an allowed change is recorded with what becomes of it.
    async fn permit(
        &self,
        caller: &Caller,
        action: Action,
        path: &SecretPath,
        version: Option<Version>,
        written_fields: Arc<[String]>,
    ) -> Result<Permitted, Fault> {
        let set = self.policies.current();
        let needed = set.sees_secrets() || version.is_some();
        let record = if needed { self.look_up_one(&caller.principal.tenant, path, version).await? } else { Ok(None) };
        let secret = record.clone().unwrap_or_default();
        let subject = Subject { path: path.clone(), secret, written_fields };
        let (decision, inputs) = Self::decide_one(caller, &set, action, &subject);
        match decision.verdict.clone() {
            Verdict::Allow(filter) => Ok(Permitted { set, action, decision, inputs, filter, record }),
            Verdict::Deny(denial) => {
                let fault = Fault::Denied(denial);
                let account = Account::of_one(action, path.clone(), fault.code(), (decision, inputs));
                self.record(caller, &set, account).await?;
                Err(fault)
            }
        }
    }

    /// A write under field obligations may set the permitted fields alone.
    async fn permit_fields(
        &self,
        caller: &Caller,
        path: &SecretPath,
        permitted: Permitted,
        fields: &[String],
    ) -> Result<Permitted, Fault> {
        if fields.iter().all(|field| permitted.filter.permits(field)) {
            return Ok(permitted);
        }
        let denial = Denial {
            code: DenialCode::AccessDenied,
            message: "A policy permits writing other fields of this secret alone".to_owned(),
            reason: Some("field_not_permitted".to_owned()),
        };
        Err(self.refuse(caller, path.clone(), permitted, Fault::Denied(denial)).await)
    }

    /// Records a permitted change that cannot be made after all.
    async fn refuse(&self, caller: &Caller, path: SecretPath, permitted: Permitted, fault: Fault) -> Fault {
        let decided = (permitted.decision, permitted.inputs);
        let account = Account::of_one(permitted.action, path, fault.code(), decided);
        self.record(caller, &permitted.set, account).await.err().unwrap_or(fault)
    }

    async fn commit(
        self: &Arc<Self>,
        caller: &Caller,
        path: SecretPath,
        permitted: Permitted,
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
        outcome?.map_err(|refusal| {
            if refusal == Refusal::Damaged {
                self.metrics.unreadable_record();
            }
            refusal.into()
        })
    }

    fn witness(self: &Arc<Self>, caller: &Caller, path: SecretPath, permitted: Permitted) -> Witness {
        let (vault, caller) = (Arc::clone(self), caller.clone());
        Box::new(move |outcome| {
            let (code, version) = match outcome {
                Ok(committed) => (audit::OK, Some(committed.head.latest)),
                Err(refusal) => (Fault::from(*refusal).code(), None),
            };
            let event = Event { path: Some(path), version, code, decision: Some(permitted.decision) };
            let account =
                Account { action: permitted.action, batch_size: None, inputs: permitted.inputs, events: vec![event] };
            vault.row(&caller, permitted.set.generation, account)
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
