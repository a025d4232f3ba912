import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { runCommand } from '../run-command.ts';
import { NotAvailable } from '../servers/server.ts';

/** An archive that the machine itself trusts, as its apt sources name it. */
export interface AptSource {
  readonly uri: string;
  readonly suite: string;
  readonly components: readonly string[];
  /** Value of Signed-By; undefined: the machine's trusted keys. An embedded key keeps its line breaks. */
  readonly signedBy: string | undefined;
}

/** The name of the machine's release, such as `bookworm` or `noble`; throws where apt is not how programs are installed. */
export function releaseCodename(): string {
  const release = existsSync('/etc/os-release') ? readFileSync('/etc/os-release', 'utf8') : '';
  const codename = /^VERSION_CODENAME="?([a-z]+)"?$/m.exec(release)?.[1];
  if (codename === undefined || !existsSync('/usr/bin/apt-get') || !existsSync('/usr/bin/dpkg')) {
    throw new NotAvailable('this machine has no apt');
  }
  return codename;
}

/** The machine's own archives of its own release: the main one, its updates and its security fixes. */
export function readAptSources(codename: string): AptSource[] {
  const folder = '/etc/apt/sources.list.d';
  const files = [
    '/etc/apt/sources.list',
    ...(existsSync(folder) ? readdirSync(folder).map((name) => `${folder}/${name}`) : []),
  ];
  const sources = files
    .filter((file) => existsSync(file))
    .flatMap((file) => {
      const text = readFileSync(file, 'utf8');
      if (file.endsWith('.sources')) return parseStanzas(text);
      return file.endsWith('.list') ? parseLines(text) : [];
    });
  const suites = [codename, `${codename}-updates`, `${codename}-security`];
  const own = sources.filter((source) => suites.includes(source.suite) && source.components.includes('main'));
  if (own.length === 0) throw new NotAvailable(`no apt source of ${codename} main on this machine`);
  return own;
}

/** Parses sources in the newer format (deb822). */
export function parseStanzas(text: string): AptSource[] {
  return text.split(/\n\s*\n/).flatMap((stanza) => {
    const field = (name: string) => {
      const lines = stanza.split('\n').filter((line) => !line.startsWith('#'));
      const first = lines.findIndex((line) => line.toLowerCase().startsWith(`${name.toLowerCase()}:`));
      if (first === -1) return undefined;
      const next = lines.findIndex((line, place) => place > first && !/^\s/.test(line));
      return [(lines[first] ?? '').slice(name.length + 1), ...lines.slice(first + 1, next === -1 ? undefined : next)]
        .join('\n')
        .trim();
    };
    const words = (name: string) => (field(name) ?? '').split(/\s+/).filter((word) => word !== '');
    if (!words('Types').includes('deb') || field('Enabled') === 'no') return [];
    return words('URIs').flatMap((uri) =>
      words('Suites').map((suite) => ({ uri, suite, components: words('Components'), signedBy: field('Signed-By') })),
    );
  });
}

/** Parses sources in the older format of one line each. */
export function parseLines(text: string): AptSource[] {
  return text.split('\n').flatMap((line) => {
    const match = /^\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)/.exec(line);
    if (match === null) return [];
    const [, options = '', uri = '', suite = '', components = ''] = match;
    return [
      { uri, suite, components: components.trim().split(/\s+/), signedBy: /signed-by=(\S+)/i.exec(options)?.[1] },
    ];
  });
}

/** apt with lists, cache and sources of its own; it changes nothing on the machine and needs no root. */
export class PrivateApt {
  readonly #folder: string;

  private constructor(folder: string) {
    this.#folder = folder;
  }

  /** Fetches the package lists of these archives; apt checks their signatures with the machine's keys. */
  static async open(folder: string, sources: readonly AptSource[]): Promise<PrivateApt> {
    for (const part of ['lists/partial', 'cache/archives/partial', 'parts'])
      await mkdir(`${folder}/${part}`, { recursive: true });
    await writeFile(`${folder}/private.sources`, sources.map(stanzaOf).join('\n'));
    // How to reach the archives (a proxy, a mirror's credentials) stays the machine's business; its hooks do not.
    const acquire = (await runCommand('apt-config', ['dump']))
      .split('\n')
      .filter((line) => line.startsWith('Acquire::'));
    const own = [
      ['Dir::Etc::main', '/dev/null'],
      ['Dir::Etc::parts', `${folder}/parts`],
      ['Dir::Etc::sourcelist', `${folder}/private.sources`],
      ['Dir::Etc::sourceparts', `${folder}/parts`],
      ['Dir::State::lists', `${folder}/lists`],
      ['Dir::Cache', `${folder}/cache`],
      ['APT::Install-Recommends', 'false'],
      ['Acquire::IndexTargets::deb::DEP-11::DefaultEnabled', 'false'],
      // Root would download as the user _apt, who may not see into this folder.
      ['APT::Sandbox::User', ''],
      ['Debug::NoLocking', 'true'],
    ];
    await writeFile(
      `${folder}/apt.conf`,
      [...acquire, ...own.map(([name, value]) => `${name} "${value}";`), ''].join('\n'),
    );
    const apt = new PrivateApt(folder);
    await apt.#run('apt-get', ['update', '--error-on=any']);
    return apt;
  }

  /** The version that would be downloaded, without epoch and Debian revision; undefined when there is none. */
  async candidateVersion(name: string): Promise<string | undefined> {
    const shown = await this.#run('apt-cache', ['show', '--no-all-versions', name]).catch(() => '');
    return /^Version: (?:\d+:)?([\d.]+)/m.exec(shown)?.[1];
  }

  /** The packages that an installation would bring in: those asked for and what the machine lacks for them. */
  async missingFor(names: readonly string[]): Promise<string[]> {
    const plan = await this.#run('apt-get', ['install', '--simulate', ...names]);
    const missing = [...plan.matchAll(/^Inst (\S+)/gm)].map((match) => match[1] ?? '');
    return [...new Set([...names, ...missing])];
  }

  /** Downloads packages and unpacks them into `target`, without installing them. */
  async unpack(names: readonly string[], target: string): Promise<void> {
    const downloads = `${this.#folder}/downloads`;
    await mkdir(downloads, { recursive: true });
    await mkdir(target, { recursive: true });
    await this.#run('apt-get', ['download', ...names], downloads);
    for (const file of await readdir(downloads)) await runCommand('dpkg', ['-x', `${downloads}/${file}`, target]);
  }

  #run(command: string, args: readonly string[], cwd: string = this.#folder): Promise<string> {
    return runCommand(command, args, {
      cwd,
      env: { ...process.env, APT_CONFIG: `${this.#folder}/apt.conf`, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive' },
    });
  }
}

function stanzaOf({ uri, suite, components, signedBy }: AptSource): string {
  const signature = signedBy === undefined ? '' : `Signed-By: ${signedBy}\n`;
  return `Types: deb\nURIs: ${uri}\nSuites: ${suite}\nComponents: ${components.join(' ')}\n${signature}`;
}
