import { readSettings, rule, setting } from '@keytrail/settings';
import { authSettings } from '../config.ts';
import { startIssuer } from '../issuer.ts';

export const issuerSettings = {
  environment: authSettings.environment,
  tokenAudience: authSettings.tokenAudience,
  host: setting('KEYTRAIL_HOST', rule.text().default('127.0.0.1'), 'address that the issuer binds'),
  port: setting('KEYTRAIL_ISSUER_PORT', rule.port().default(0), 'port of the issuer; 0 for any free one'),
};

const config = readSettings(issuerSettings, process.env);
const issuer = await startIssuer({
  environment: config.environment,
  host: config.host,
  port: config.port,
  audience: config.tokenAudience,
});
process.stdout.write(
  `${JSON.stringify({ event: 'listening', service: 'issuer', url: issuer.url, jwksUrl: issuer.jwksUrl, issuer: issuer.issuer, pid: process.pid })}\n`,
);
for (const signal of ['SIGTERM', 'SIGINT'] as const)
  process.on(signal, () => void issuer.stop().then(() => process.exit()));
