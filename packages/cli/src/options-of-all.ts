import { type Command, Option } from 'commander';

/**
 * Lets the options of the program stand behind a command, too, where that command has none of the same name: `--session` is the target of a
 * service before `explain`, and the id of a session behind it. Commander alone gives the program whatever it knows, wherever it stands.
 */
export function acceptBehindCommands(program: Command): void {
  program.enablePositionalOptions();
  for (const command of program.commands) acceptBehind(command, program);
}

function acceptBehind(command: Command, program: Command): void {
  command.enablePositionalOptions();
  const own = new Set(command.options.map(({ long }) => long));
  const added = program.options.filter(({ long }) => !own.has(long));
  for (const { flags, description, parseArg } of added) {
    const option = new Option(flags, description).hideHelp();
    command.addOption(parseArg ? option.argParser(parseArg) : option);
  }
  command.hook('preAction', () => {
    for (const name of added.map((option) => option.attributeName()))
      if (command.getOptionValueSource(name) === 'cli')
        program.setOptionValueWithSource(name, command.getOptionValue(name), 'cli');
  });
  for (const further of command.commands) acceptBehind(further, program);
}
