import { fileURLToPath } from 'node:url';

/** The root folder of this checkout, with a trailing slash removed. */
export const checkoutFolder: string = fileURLToPath(new URL('../../..', import.meta.url)).replace(/\/$/, '');

/** Git-ignored folder for downloaded programs; safe to delete while nothing runs. */
export const toolchainFolder: string = `${checkoutFolder}/.toolchain`;
