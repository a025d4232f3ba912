import { execFileSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { checkoutFolder } from '@keytrail/local';
import type { Edit } from './guard.ts';

/** A copy of the checkout, in which guards can be switched off. */
export interface CheckoutCopy {
  readonly folder: string;
  /** Applies the edits for good. Throws when a text is not there exactly once. */
  edit(edits: readonly Edit[]): void;
  /** Applies the edits, runs the work, and restores the files. Throws when a text is not there exactly once. */
  without<T>(edits: readonly Edit[], work: () => Promise<T>): Promise<T>;
  remove(): void;
}

/** The copy has the checkout's files, its installed packages, and workspace packages of its own; it is at `.local/<kind>/<name>`. */
export function copyCheckout(name: string, kind = 'guards'): CheckoutCopy {
  const folder = join(checkoutFolder, '.local', kind, name);
  const remove = () => rmSync(folder, { recursive: true, force: true });
  remove();
  for (const file of filesOfCheckout()) {
    mkdirSync(dirname(join(folder, file)), { recursive: true });
    cpSync(join(checkoutFolder, file), join(folder, file));
  }
  linkPackages(folder);
  const toolchain = join(checkoutFolder, '.toolchain');
  if (existsSync(toolchain)) symlinkSync(toolchain, join(folder, '.toolchain'));

  function replaceIn({ file, find, replace }: Edit): void {
    const path = join(folder, file);
    const text = readFileSync(path, 'utf8');
    if (text.split(find).length !== 2) throw new Error(`not exactly once in ${file}: ${find.slice(0, 60)}`);
    writeFileSync(
      path,
      text.replace(find, () => replace),
    );
  }

  return {
    folder,
    remove,
    edit(edits) {
      for (const edit of edits) replaceIn(edit);
    },
    async without(edits, work) {
      const originals = new Map<string, string>();
      try {
        for (const edit of edits) {
          const path = join(folder, edit.file);
          if (!originals.has(path)) originals.set(path, readFileSync(path, 'utf8'));
          replaceIn(edit);
        }
        return await work();
      } finally {
        for (const [path, text] of originals) writeFileSync(path, text);
      }
    },
  };
}

/** Relative to the checkout: what git has or would take; of a copy, which git knows nothing of, all that was copied. */
export function filesOfCheckout(): string[] {
  if (!existsSync(join(checkoutFolder, '.git'))) return filesBelow('');
  const files = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '-z'], {
    cwd: checkoutFolder,
    encoding: 'utf8',
    maxBuffer: 64 * 1024 * 1024,
  });
  return files.split('\0').filter((file) => isFile(join(checkoutFolder, file)));
}

function filesBelow(folder: string): string[] {
  const entries = readdirSync(join(checkoutFolder, folder), { withFileTypes: true });
  return entries.flatMap((entry) => {
    if (['node_modules', '.local', '.toolchain', '.vitest'].includes(entry.name)) return [];
    const path = join(folder, entry.name);
    return entry.isDirectory() ? filesBelow(path) : entry.isFile() ? [path] : [];
  });
}

/** Not what was deleted since, and not a linked folder. */
function isFile(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false })?.isFile() === true;
}

function linkPackages(folder: string): void {
  const installed = join(checkoutFolder, 'node_modules');
  mkdirSync(join(folder, 'node_modules', '@keytrail'), { recursive: true });
  for (const entry of readdirSync(installed)) {
    const own = entry === '@keytrail' || (entry.startsWith('.') && entry !== '.bin');
    if (!own) symlinkSync(join(installed, entry), join(folder, 'node_modules', entry));
  }
  for (const group of ['packages', 'services', 'deploy']) {
    for (const member of readdirSync(join(folder, group))) {
      const manifest = join(folder, group, member, 'package.json');
      if (!existsSync(manifest)) continue;
      const { name } = JSON.parse(readFileSync(manifest, 'utf8')) as { name: string };
      symlinkSync(join(folder, group, member), join(folder, 'node_modules', name));
      const nested = join(checkoutFolder, group, member, 'node_modules');
      if (existsSync(nested)) symlinkSync(nested, join(folder, group, member, 'node_modules'));
    }
  }
}
