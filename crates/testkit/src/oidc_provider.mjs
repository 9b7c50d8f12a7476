// A real provider of OpenID Connect (npm: oidc-provider) with two clients, on the loopback; see oidc_provider.rs.
//   node oidc_provider.mjs PACKAGE SECRET REDIRECT…
// It prints where it listens. Who signs in is named by the cookie 'account' of whoever asks, without a page between.
import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import { pathToFileURL } from 'node:url';

const [, , home, secret, ...redirects] = process.argv;
const { default: Provider } = await import(pathToFileURL(`${home}/node_modules/oidc-provider/lib/index.js`));

const people = {
  1001: { preferred_username: 'ada', email: 'ada@example.org', groups: ['dba', 'staff'] },
  1002: { preferred_username: 'grace', email: 'grace@example.org', groups: ['dba-of-other'] },
  1003: { preferred_username: 'mallory', email: 'mallory@example.org' },
};
const key = (kind, options, more) => ({ ...generateKeyPairSync(kind, options).privateKey.export({ format: 'jwk' }), ...more });
const keys = [
  key('rsa', { modulusLength: 2048 }, { kid: 'rsa', alg: 'RS256', use: 'sig' }),
  key('ec', { namedCurve: 'P-256' }, { kid: 'ec', alg: 'ES256', use: 'sig' }),
];

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const left = redirects.map((uri) => uri.replace('/sign-in/oidc/callback', '/sign-in'));
  const client = { redirect_uris: redirects, post_logout_redirect_uris: left, grant_types: ['authorization_code'], response_types: ['code'] };
  const provider = new Provider(issuer, {
    clients: [
      { ...client, client_id: 'pgark', client_secret: secret },
      { ...client, client_id: 'pgark-public', token_endpoint_auth_method: 'none', id_token_signed_response_alg: 'ES256' },
    ],
    claims: { openid: ['sub'], profile: ['preferred_username'], email: ['email'], groups: ['groups'] },
    conformIdTokenClaims: false,
    enabledJWA: { idTokenSigningAlgValues: ['RS256', 'ES256'] },
    jwks: { keys },
    cookies: { keys: [secret] },
    features: {
      devInteractions: { enabled: false },
      // Its own page loads a font from elsewhere.
      rpInitiatedLogout: {
        enabled: true,
        logoutSource: async (ctx, form) => {
          const yes = '<button type="submit" form="op.logoutForm" value="yes" name="logout">Yes, sign me out</button>';
          ctx.body = `<!DOCTYPE html><html lang="en"><title>Sign out</title><main>${form}${yes}</main></html>`;
        },
      },
    },
    pkce: { required: () => true },
    findAccount: (_, id) => people[id] && { accountId: id, claims: () => ({ sub: id, ...people[id] }) },
    interactions: { url: (_, interaction) => `/who/${interaction.uid}` },
    // What somebody has asked for in the settings, they have agreed to.
    loadExistingGrant: async (ctx) => {
      const grant = new ctx.oidc.provider.Grant({ clientId: ctx.oidc.client.clientId, accountId: ctx.oidc.session.accountId });
      grant.addOIDCScope('openid profile email groups');
      await grant.save();
      return grant;
    },
  });
  provider.use(async (ctx, next) => {
    if (!ctx.path.startsWith('/who/')) return next();
    const account = ctx.cookies.get('account', { signed: false });
    const result = people[account] ? { login: { accountId: account } } : { error: 'access_denied', error_description: 'nobody' };
    await provider.interactionFinished(ctx.req, ctx.res, result, { mergeWithLastSubmission: false });
    ctx.respond = false;
    return undefined;
  });
  server.on('request', provider.callback());
  console.log(issuer);
});
