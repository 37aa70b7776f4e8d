// Portcullis from TypeScript: fetch alone. Prints paths and versions, never a value.
//
//   node dist/batch.js [read] [metadata] [startup]     all three if none is named

type Refusal = { code: string; message: string };
type Released = { data: Record<string, unknown>; version: number; secret_type: string };
type BatchReply = {
  secrets: Record<string, Released>;
  errors: Record<string, Refusal>;
  retrieved: number;
  failed: number;
};
type MetadataReply = { metadata: Record<string, { version: number; updated_at: string }>; has_more?: boolean };
type ErrorReply = { error: Refusal & { details?: { path?: string }; request_id: string } };

const aFew = ["integrations/salesforce/oauth", "integrations/scaisend/api-key", "integrations/stripe/secret-key"];
const allWeNeed = [...aFew, "infra/db/primary/credentials", "infra/redis/primary/credentials"];

function environment(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

/** The server's answer, or an exception: fetch itself takes a 403 for a success. */
async function post<Reply>(tokenVariable: string, path: string, body: object): Promise<Reply> {
  const response = await fetch(environment("PORTCULLIS_URL").replace(/\/$/, "") + path, {
    method: "POST",
    headers: { Authorization: `Bearer ${environment(tokenVariable)}`, "Content-Type": "application/json" },
    body: JSON.stringify(body),
    redirect: "error",
    signal: AbortSignal.timeout(10_000),
  });
  if (!response.ok) throw new Error(`HTTP ${response.status}: ${await reason(response)}`);
  return (await response.json()) as Reply;
}

async function reason(response: Response): Promise<string> {
  try {
    const { error } = (await response.json()) as ErrorReply;
    return `${error.code} at ${error.details?.path ?? "-"}: ${error.message} (request ${error.request_id})`;
  } catch {
    return "no error of Portcullis's own";
  }
}

function expect(holds: boolean, what: string): void {
  if (!holds) throw new Error(`unexpected answer: not ${what}`);
}

function sameNames(left: string[], right: string[]): boolean {
  return JSON.stringify([...left].sort()) === JSON.stringify([...right].sort());
}

/** A few credentials at once. Whatever is denied or missing is in `errors`, next to what was released. */
async function readSome(): Promise<void> {
  const options = { include_metadata: false, fail_fast: false };
  const reply = await post<BatchReply>("PORTCULLIS_TOKEN", "/v1/secrets/batch", { paths: aFew, options });
  const [released, refused] = [Object.keys(reply.secrets), Object.keys(reply.errors)];
  expect(sameNames([...released, ...refused], aFew), "every path once");
  expect(reply.retrieved === released.length && reply.failed === refused.length, "the counts");
  for (const path of aFew) {
    const [secret, error] = [reply.secrets[path], reply.errors[path]];
    console.log(secret ? `read ${path} version ${secret.version}` : `refused ${path} ${error.code}: ${error.message}`);
  }
}

/** What there is below two prefixes, without values: needs no right to read. */
async function listSome(): Promise<void> {
  const reply = await post<MetadataReply>("PORTCULLIS_TOKEN", "/v1/secrets/batch/metadata", {
    paths: ["integrations/salesforce/*", "integrations/stripe/*"],
    expand_wildcards: true,
  });
  expect(!reply.has_more, "one page");
  for (const path of Object.keys(reply.metadata).sort()) {
    expect(!("data" in reply.metadata[path]), "free of values");
    console.log(`metadata ${path} version ${reply.metadata[path].version}`);
  }
}

/** All that a service needs, or no start: with fail_fast the first denied or missing path is a 4xx. */
async function startUp(): Promise<void> {
  const body = { paths: allWeNeed, options: { fail_fast: true } };
  const { secrets } = await post<BatchReply>("PORTCULLIS_STARTUP_TOKEN", "/v1/secrets/batch", body);
  expect(sameNames(Object.keys(secrets), allWeNeed), "every path");
  for (const path of allWeNeed) console.log(`loaded ${path} version ${secrets[path].version}`);
}

const parts: Record<string, () => Promise<void>> = { read: readSome, metadata: listSome, startup: startUp };

const named = process.argv.slice(2);
for (const name of named.length > 0 ? named : Object.keys(parts)) {
  if (!(name in parts)) throw new Error(`unknown part: ${name} (${Object.keys(parts).join(", ")})`);
  await parts[name]();
}
