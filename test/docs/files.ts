import { readdirSync } from 'node:fs';
import { join } from 'node:path';

export const checkout = join(import.meta.dirname, '../..');

/** The paths of the files below a folder whose names end so, without what is installed or made on this machine. */
export function filesBelow(folder: string, ending: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) {
      const made = entry.name === 'node_modules' || (entry.name.startsWith('.') && entry.name !== '.ci');
      return made ? [] : filesBelow(path, ending);
    }
    return entry.name.endsWith(ending) ? [path] : [];
  });
}
