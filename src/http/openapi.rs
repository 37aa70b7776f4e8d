//! The OpenAPI document, generated from the handlers.

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};

use super::{audit, batch, export, keys, policies, secrets, system};

/// What the server answers.
#[derive(OpenApi)]
#[openapi(
    info(title = "Portcullis", description = "A secrets vault whose access decisions are made, path by path, by \
         sandboxed WebAssembly policy modules."),
    paths(
        secrets::read, secrets::put, secrets::delete, secrets::list, secrets::restore, secrets::metadata,
        secrets::patch_metadata, secrets::versions, secrets::rollback, secrets::destroy, batch::read, batch::metadata,
        audit::logs, export::export, system::whoami, policies::list, policies::describe_one, policies::status,
        policies::reload, policies::test, keys::status, keys::rotate, keys::rewrap, keys::rotate_root, keys::seal,
        system::health, system::ready,
        system::version, system::metrics, document
    ),
    modifiers(&Bearer),
    security(("bearer" = []))
)]
pub struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "system", security(()), responses((status = 200)))]
pub async fn document() -> Response {
    static WRITTEN: LazyLock<String> = LazyLock::new(|| Document::openapi().to_json().unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], WRITTEN.as_str()).into_response()
}
