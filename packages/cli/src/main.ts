#!/usr/bin/env node
import { run } from './program.ts';

// Whoever reads may have read enough.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
});
process.exitCode = await run(process.argv.slice(2), {
  environment: process.env,
  out: (text) => void process.stdout.write(text),
  columns: process.stdout.columns,
  say: (text) => void process.stderr.write(text.endsWith('\n') ? text : `${text}\n`),
});
