//! The gate in front of a service: who calls, and whether the call is for them.

use std::{
    convert::Infallible,
    future::{Ready, ready},
};

use futures::future::Either;
use tonic::{
    Status,
    body::Body,
    codegen::{
        Context, Poll, Service,
        http::{Request, Response, header::AUTHORIZATION},
    },
    server::NamedService,
    transport::{
        CertificateDer,
        server::{TcpConnectInfo, TlsConnectInfo},
    },
};
use webpki::EndEntityCert;

use super::{Role, Roles, TokenCheck, demand};

/// What a caller has to show. A call needs a role that the call is for, and has those that both its
/// certificate and its token are of, as far as each is asked for.
#[derive(Clone, Debug)]
pub struct Admission {
    tokens: TokenCheck,
    certificates: bool,
}

impl Admission {
    /// `certificates`: TLS has asked for one and checked it; the roles are those that it names.
    pub fn new(tokens: TokenCheck, certificates: bool) -> Self {
        Self {
            tokens,
            certificates,
        }
    }

    /// Whether a caller may make this call; `chain`: its certificates, its own first.
    ///
    /// # Errors
    /// Unauthenticated: it shows nothing that counts. PermissionDenied: the call is for others.
    pub fn admit(
        &self,
        path: &str,
        authorization: Option<&[u8]>,
        chain: Option<&[CertificateDer<'_>]>,
    ) -> Result<(), Status> {
        let mut roles = Roles::ALL;
        if self.certificates {
            let own = chain
                .and_then(|chain| chain.first())
                .ok_or_else(|| Status::unauthenticated("a client certificate is needed"))?;
            roles = certificate_roles(own);
            if roles.is_empty() {
                return Err(Status::permission_denied(format!(
                    "the client certificate names no role: it needs a URI like {} among its \
                     alternative names (`tina certs` makes such)",
                    Role::Worker.uri()
                )));
            }
        }
        let by_token = self.tokens.roles(authorization)?;
        let demanded = demand(path);
        if demanded.is_empty() {
            return Err(Status::permission_denied(format!(
                "{path}: no role may call this"
            )));
        }
        if !roles.and(by_token).and(demanded).is_empty() {
            return Ok(());
        }
        let held = match (self.certificates, by_token == Roles::ALL) {
            (false, _) => format!("the token is of {by_token}"),
            (true, true) => format!("the certificate is of {roles}"),
            (true, false) => format!("the certificate is of {roles}, the token of {by_token}"),
        };
        Err(Status::permission_denied(format!(
            "{path} is for {demanded}; {held}"
        )))
    }
}

/// The roles that a certificate names: URIs `urn:tina:role:ROLE` among its alternative names. Whether
/// the certificate is worth anything TLS has found out before.
pub fn certificate_roles(certificate: &CertificateDer<'_>) -> Roles {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else {
        return Roles::NONE;
    };
    let named: Vec<Role> = certificate
        .valid_uri_names()
        .filter_map(|uri| Role::ALL.into_iter().find(|role| role.uri() == uri))
        .collect();
    Roles::of(&named)
}

/// A service behind a gate. Unlike an interceptor it sees which method is called.
#[derive(Clone, Debug)]
pub struct Gate<S> {
    inner: S,
    admission: Admission,
}

impl<S> Gate<S> {
    /// Puts a gate before `inner`.
    pub fn new(inner: S, admission: Admission) -> Self {
        Self { inner, admission }
    }
}

impl<S: NamedService> NamedService for Gate<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<B>> for Gate<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let authorization = request.headers().get(AUTHORIZATION);
        let chain = request
            .extensions()
            .get::<TlsConnectInfo<TcpConnectInfo>>()
            .and_then(TlsConnectInfo::peer_certs);
        let admitted = self.admission.admit(
            request.uri().path(),
            authorization.map(|value| value.as_bytes()),
            chain.as_deref().map(Vec::as_slice),
        );
        match admitted {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::{super::role_token, *};

    const WORK: &str = "/tina.v1.Rollouts/Work";
    const STATUS: &str = "/tina.v1.Status/GetStatus";
    const PUBLISH: &str = "/tina.v1.Adapters/Publish";

    fn call(admission: &Admission, path: &str, token: Option<&str>) -> Result<(), Code> {
        let header = token.map(|token| format!("Bearer {token}"));
        admission
            .admit(path, header.as_deref().map(str::as_bytes), None)
            .map_err(|status| {
                assert!(!status.message().contains("s3cret"), "{status}");
                status.code()
            })
    }

    #[test]
    fn a_role_s_token_opens_what_is_for_the_role_and_the_secret_everything() {
        let admission = Admission::new(TokenCheck::new(Some("s3cret")), false);
        for path in [WORK, STATUS, PUBLISH] {
            assert_eq!(call(&admission, path, Some("s3cret")), Ok(()));
            for wrong in [None, Some("s3cre"), Some("")] {
                assert_eq!(call(&admission, path, wrong), Err(Code::Unauthenticated));
            }
        }
        let reader = role_token("s3cret", Role::Reader);
        assert_eq!(call(&admission, STATUS, Some(&reader)), Ok(()));
        for path in [WORK, PUBLISH, "/tina.v1.Control/Stop"] {
            assert_eq!(
                call(&admission, path, Some(&reader)),
                Err(Code::PermissionDenied)
            );
        }
        let worker = role_token("s3cret", Role::Worker);
        assert_eq!(call(&admission, WORK, Some(&worker)), Ok(()));
        assert_eq!(
            call(&admission, PUBLISH, Some(&worker)),
            Err(Code::PermissionDenied)
        );
        assert_eq!(
            call(&admission, "/tina.v1.Other/Do", Some("s3cret")),
            Err(Code::PermissionDenied)
        );
    }

    #[test]
    fn without_token_and_certificates_all_may_do_all() {
        let admission = Admission::new(TokenCheck::new(None), false);
        assert_eq!(call(&admission, PUBLISH, None), Ok(()));
    }

    #[test]
    fn where_certificates_are_asked_for_a_token_alone_is_not_enough() {
        let admission = Admission::new(TokenCheck::new(Some("s3cret")), true);
        assert_eq!(
            call(&admission, WORK, Some("s3cret")),
            Err(Code::Unauthenticated)
        );
        let junk = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
        assert!(certificate_roles(&junk).is_empty());
        let status = admission
            .admit(WORK, Some(b"Bearer s3cret"), Some(&[junk]))
            .unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
    }
}
