import { rule, type SettingsValues, secretSetting, setting, z } from '@keytrail/settings';

export const authSettings = {
  environment: setting(
    'KEYTRAIL_ENVIRONMENT',
    z.enum(['development', 'production']).default('production'),
    'development or production: development allows known credentials and the local token issuer',
  ),
  jwksUrl: setting('KEYTRAIL_JWKS_URL', rule.url(), "where the token issuer's public keys (JWKS) are"),
  tokenIssuer: setting('KEYTRAIL_TOKEN_ISSUER', rule.text(), 'claim `iss` that tokens must have'),
  tokenAudience: setting(
    'KEYTRAIL_TOKEN_AUDIENCE',
    rule.text().default('keytrail'),
    'claim `aud` that tokens must have',
  ),
  serviceCredential: secretSetting(
    'KEYTRAIL_SERVICE_CREDENTIAL',
    // It travels in a header after a space: with white space or beyond ASCII it could never authenticate.
    z
      .string()
      .min(32)
      .regex(/^[!-~]*$/, 'must be of visible ASCII characters, without white space (a line break at its end too)')
      .optional(),
    'credential shared by the services, 32 visible ASCII characters or more; without it, calls between services are refused',
  ),
  tokenCacheSize: setting(
    'KEYTRAIL_TOKEN_CACHE_SIZE',
    rule.count().default(20_000),
    'verified tokens remembered until they expire',
  ),
  jwksCooldownMs: setting(
    'KEYTRAIL_JWKS_COOLDOWN_MS',
    rule.count().default(5_000),
    'least time between two fetches of the key set, in ms; a token with a new key id causes a fetch',
  ),
};

export type AuthConfig = SettingsValues<typeof authSettings>;
