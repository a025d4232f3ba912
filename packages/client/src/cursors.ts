/** What the cursors are called in the key store. Attach hands both in, so that the greeting can tell whether there is anything to pull. */
export const cursors = {
  /** Of ConversationService.ListChanges. */
  conversations: 'conversation changes',
  /** Of SessionService.ListKeyChanges. */
  keys: 'session changes',
} as const;
