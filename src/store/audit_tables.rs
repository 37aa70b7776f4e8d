//! The audit log's tables in the store's verbs, over one connection of either database.

use std::borrow::Cow;

use super::{
    DamagedAuditRow, Logged, StoreError, StoreResult, Tombstone,
    sql::{Arg, Backend, Columns},
    statements::{AT_ONCE, Template},
    tables::{Tables, count, narrow},
};
use crate::domain::{
    AuditOrder, AuditPlace, AuditRow, AuditScan, ChainHead, Link, StoredAuditRow, TenantId, Timestamp,
};

macro_rules! columns {
    () => {
        "at, chain, number, tenant, identity_id, identity_type, action, source_ip, request_id, events, body, link"
    };
}

pub const APPEND_ROWS: Template = (12, concat!("{insert} INTO audit_log (", columns!(), ") VALUES {rows}"));

/// Where the vault writes rows: whatever stands elsewhere was put there by somebody else, and is shown to nobody.
macro_rules! in_place {
    () => {
        "chain BETWEEN 1 AND 4294967295 AND number BETWEEN 1 AND 9007199254740992"
    };
}

macro_rules! scan {
    ($at:literal, $more:literal, $compare:literal, $order:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            " FROM audit_log WHERE ",
            in_place!(),
            " AND (tenant = $1 OR ($2 = 1 AND tenant IS NULL)) AND (at, chain, number) ",
            $compare,
            " ($3, $4, $5) AND ",
            $at,
            " >= $6 AND ",
            $at,
            " < $7 AND ($8 = '' OR identity_id = $8) AND ($9 = '' OR identity_type = $9)
               AND ($10 = '' OR source_ip = $10) AND ($11 = '' OR request_id = $11)",
            $more,
            " ORDER BY at ",
            $order,
            ", chain ",
            $order,
            ", number ",
            $order,
            " LIMIT $12"
        )
    };
}

/// One statement for each index that can help; `at + 0` keeps the planner from an index that would need a sort.
macro_rules! scans {
    ($compare:literal, $order:literal) => {
        [
            scan!("at + 0", " AND request_id = $11", $compare, $order),
            scan!("at + 0", " AND tenant = $1 AND identity_id = $8", $compare, $order),
            scan!("at", "", $compare, $order),
        ]
    };
}

impl<B: Backend> Tables<'_, B> {
    /// Appends rows at their places. A place that is taken is an error, and so is a row that is not there afterwards.
    pub async fn append(&mut self, rows: &[(ChainHead, Cow<'_, AuditRow>)]) -> StoreResult<()> {
        for rows in rows.chunks(AT_ONCE) {
            let rows: Vec<_> = rows.iter().map(|(head, row)| arguments(head, row)).collect();
            ensure_took(rows.len(), self.execute_rows(&B::statements().append_rows, &rows).await?)?;
        }
        Ok(())
    }

    /// The rows that a query wants.
    pub async fn audit_rows(&mut self, scan: &AuditScan, limit: u32) -> StoreResult<Vec<Logged>> {
        let ([by_request, by_identity, by_time], all) = match scan.order {
            AuditOrder::NewestFirst => (scans!("<=", "DESC"), (i64::MAX, i64::MAX, i64::MAX)),
            AuditOrder::OldestFirst => (scans!(">=", "ASC"), (i64::MIN, 0, 0)),
        };
        let sql = match scan {
            AuditScan { request_id: Some(_), .. } => by_request,
            AuditScan { identity_id: Some(_), .. } => by_identity,
            _ => by_time,
        };
        let start = scan.start.map_or(all, |(at, place)| (at.micros(), i64::from(place.chain), place.number));
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (id, kind, ip, request) =
            (text(&scan.identity_id), text(&scan.identity_type), text(&scan.source_ip), text(&scan.request_id));
        let args = [
            Arg::Text(scan.tenant.as_ref().map_or("", TenantId::as_str)),
            Arg::Int(i64::from(scan.with_untenanted)),
            Arg::Int(start.0),
            Arg::Int(start.1),
            Arg::Int(start.2),
            Arg::Int(scan.from.map_or(i64::MIN, Timestamp::micros)),
            Arg::Int(scan.to.map_or(i64::MAX, Timestamp::micros)),
            Arg::Text(&id),
            Arg::Text(&kind),
            Arg::Text(&ip),
            Arg::Text(&request),
            Arg::Int(i64::from(limit)),
        ];
        self.fetch(sql, &args, logged).await
    }

    /// The rows that follow a place, chain by chain.
    pub async fn audit_chain(&mut self, after: AuditPlace, limit: u32) -> StoreResult<Vec<Logged>> {
        const SQL: &str = concat!(
            "SELECT ",
            columns!(),
            " FROM audit_log WHERE ",
            in_place!(),
            " AND (chain, number) > ($1, $2) ORDER BY chain, number LIMIT $3"
        );
        let args = [Arg::Int(i64::from(after.chain)), Arg::Int(after.number), Arg::Int(i64::from(limit))];
        self.fetch(SQL, &args, logged).await
    }

    /// The last row of a chain, or what stands for the rows that were removed.
    pub async fn chain_head(&mut self, chain: u32) -> StoreResult<ChainHead> {
        const SQL: &str = "SELECT number, link FROM audit_log WHERE chain = $1 AND number <= 9007199254740992
                           ORDER BY number DESC LIMIT 1";
        let head = |row: &dyn Columns| {
            Ok(ChainHead { place: AuditPlace { chain, number: row.int(0)? }, link: link(row.blob(1)?)? })
        };
        let head = self.fetch_first(SQL, &[Arg::Int(i64::from(chain))], head).await?;
        Ok(head.unwrap_or_else(|| ChainHead::origin(chain)))
    }

    /// The log's chains; where there are several, those that have a checkpoint.
    pub async fn chains(&mut self) -> StoreResult<Vec<u32>> {
        if let Some(chain) = B::SOLE_CHAIN {
            return Ok(vec![chain]);
        }
        Ok(self.other_chains(0).await?.iter().map(|head| head.place.chain).collect())
    }

    /// The last checkpoints of all chains but one.
    pub async fn other_chains(&mut self, chain: u32) -> StoreResult<Vec<ChainHead>> {
        const SQL: &str = "SELECT chain, number, link FROM audit_chains WHERE chain <> $1 ORDER BY chain";
        if B::SOLE_CHAIN.is_some() {
            return Ok(Vec::new());
        }
        let head = |row: &dyn Columns| -> StoreResult<ChainHead> {
            let place = AuditPlace { chain: narrow(row.int(0)?)?, number: row.int(1)? };
            Ok(ChainHead { place, link: link(row.blob(2)?)? })
        };
        let whole = |row: &dyn Columns| {
            let head = head(row);
            Ok(head.inspect_err(|error| tracing::error!(%error, "ALARM: a chain's checkpoint is damaged")).ok())
        };
        let heads = self.fetch(SQL, &[Arg::Int(i64::from(chain))], whole).await?;
        Ok(heads.into_iter().flatten().collect())
    }

    /// How many rows stand where the vault writes none.
    pub async fn misplaced_rows(&mut self) -> StoreResult<u64> {
        const SQL: &str = concat!("SELECT CAST(count(*) AS BIGINT) FROM audit_log WHERE NOT (", in_place!(), ")");
        let counted = self.fetch_first(SQL, &[], |row| count(row.int(0)?)).await?;
        counted.ok_or(StoreError::Damaged("count"))
    }

    /// Keeps the last checkpoint of a chain, for the others to vouch for.
    pub async fn keep_chain(&mut self, head: &ChainHead) -> StoreResult<()> {
        const SQL: &str = "INSERT INTO audit_chains (chain, number, link) VALUES ($1, $2, $3)
                           ON CONFLICT (chain) DO UPDATE SET number = excluded.number, link = excluded.link";
        if B::SOLE_CHAIN.is_some() {
            return Ok(());
        }
        let [chain, number] = place(head.place);
        self.execute(SQL, &[chain, number, Arg::Blob(&head.link.0)]).await.map(drop)
    }

    /// Removes the rows that a tombstone stands for.
    pub async fn retain(&mut self, tombstone: &Tombstone) -> StoreResult<()> {
        let [chain, number] = place(tombstone.until);
        self.execute("DELETE FROM audit_log WHERE chain = $1 AND number <= $2", &[chain, number]).await?;
        // Another server may have removed more meanwhile: its tombstone stands for this one too.
        self.execute("DELETE FROM audit_tombstones WHERE chain = $1 AND number < $2", &[chain, number]).await?;
        let keep = "INSERT INTO audit_tombstones (chain, number, note) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        self.execute(keep, &[chain, number, Arg::Text(&tombstone.note)]).await.map(drop)
    }

    /// The notes of all tombstones.
    pub async fn tombstones(&mut self) -> StoreResult<Vec<String>> {
        const SQL: &str = "SELECT note FROM audit_tombstones ORDER BY chain";
        self.fetch(SQL, &[], |row| Ok(row.text(0)?.to_owned())).await
    }

    /// Proves that the audit log takes a row: one that is gone again when the caller commits. The caller must: a row
    /// that is rolled back has never asked the disk for room.
    pub async fn probe(&mut self) -> StoreResult<()> {
        const PROBE: &str = "INSERT INTO audit_log (chain, number, at, action, request_id, events, body, link)
                             VALUES (0, 0, 0, 'probe', '', 0, $1, $1)";
        ensure_took(1, self.execute(PROBE, &[Arg::Blob(&[])]).await?)?;
        self.execute("DELETE FROM audit_log WHERE chain = 0 AND number = 0", &[]).await.map(drop)
    }
}

fn ensure_took(given: usize, taken: u64) -> StoreResult<()> {
    if taken == given as u64 {
        Ok(())
    } else {
        Err(StoreError::Damaged("audit log: it does not take what it is given"))
    }
}

fn place<'a>(place: AuditPlace) -> [Arg<'a>; 2] {
    [Arg::Int(i64::from(place.chain)), Arg::Int(place.number)]
}

fn arguments<'a>(head: &'a ChainHead, row: &'a AuditRow) -> [Arg<'a>; APPEND_ROWS.0] {
    let [chain, number] = place(head.place);
    [
        Arg::Int(row.at.micros()),
        chain,
        number,
        Arg::MaybeText(row.tenant.as_ref().map(TenantId::as_str)),
        Arg::MaybeText(row.identity_id.as_deref()),
        Arg::MaybeText(row.identity_type.as_deref()),
        Arg::Text(&row.action),
        Arg::MaybeText(row.source_ip.as_deref()),
        Arg::Text(&row.request_id),
        Arg::Int(i64::from(row.events)),
        Arg::Blob(&row.body),
        Arg::Blob(&head.link.0),
    ]
}

/// A row whose place can be read, whatever else is wrong with it.
fn logged(row: &dyn Columns) -> StoreResult<Logged> {
    let at = Timestamp::from_micros(row.int(0)?);
    let place = AuditPlace { chain: narrow(row.int(1)?)?, number: row.int(2)? };
    match content(row, at) {
        Ok((row, link)) => Ok(Ok(StoredAuditRow { place, row, link })),
        Err(StoreError::Damaged(what)) => Ok(Err(DamagedAuditRow { at, place, what })),
        Err(error) => Err(error),
    }
}

fn content(row: &dyn Columns, at: Timestamp) -> StoreResult<(AuditRow, Vec<u8>)> {
    let owned = |text: &str| Cow::Owned(text.to_owned());
    let tenant = |text| TenantId::parse(text).ok_or(StoreError::Damaged("tenant"));
    let content = AuditRow {
        at,
        tenant: row.maybe_text(3)?.map(tenant).transpose()?,
        identity_id: row.maybe_text(4)?.map(str::to_owned),
        identity_type: row.maybe_text(5)?.map(owned),
        action: owned(row.text(6)?),
        source_ip: row.maybe_text(7)?.map(str::to_owned),
        request_id: row.text(8)?.to_owned(),
        events: narrow(row.int(9)?)?,
        body: row.blob(10)?.to_vec(),
    };
    Ok((content, row.blob(11)?.to_vec()))
}

fn link(bytes: &[u8]) -> StoreResult<Link> {
    bytes.try_into().map(Link).map_err(|_| StoreError::Damaged("link"))
}
