import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { attributeReference, eventReference, resourceReference } from '@keytrail/telemetry';

// Writes docs/attributes/README.md from the registries of attributes.
const root = join(import.meta.dirname, '..');

const table = (reference: readonly { readonly name: string; readonly describe: string }[]) =>
  [
    '| attribute | what it holds |',
    '|---|---|',
    ...reference.map(({ name, describe }) => `| \`${name}\` | ${describe.replaceAll('|', '\\|')} |`),
  ].join('\n');

const text = `# Attributes of traces

Generated from \`packages/telemetry/src/attributes.ts\`; do not edit (\`make generate\`). What is not declared there is in no span: a test runs the main path and
looks at all that was exported. No attribute holds a key, a token, a text, or the id of a user or device: those are told as pseudonyms.

## Spans and their links

${table(attributeReference)}

## Events of spans

${table(eventReference)}

## Resources

${table(resourceReference)}
`;
mkdirSync(join(root, 'docs', 'attributes'), { recursive: true });
writeFileSync(join(root, 'docs', 'attributes', 'README.md'), text);
