//! From a problem to the tokens that the model sees: chat template, then tokenizer, once.

use tina_model::{ChatMessage, ChatTemplate, Tokenizer};

use super::{DataError, Problem, Prompt};
use crate::config::RunConfig;

/// What a chat template is told of the time: midnight of 26 July 2024, UTC, the date that Llama 3's
/// template falls back to. A run that is resumed on another day must render the same prompts.
pub const TEMPLATE_TIME: u64 = 1_721_952_000;

/// Makes prompts for one model.
#[derive(Debug)]
pub struct PromptRenderer<'a> {
    tokenizer: &'a Tokenizer,
    chat: Option<ChatTemplate>,
    system: Option<String>,
}

impl<'a> PromptRenderer<'a> {
    /// Takes the model's tokenizer and chat template, and the config's word on both.
    ///
    /// # Errors
    /// `data.chat` is set, and the model has no chat template.
    pub fn new(
        config: &RunConfig,
        tokenizer: &'a Tokenizer,
        chat: Option<&ChatTemplate>,
    ) -> Result<Self, DataError> {
        let chat = match chat {
            Some(template) if config.data.chat => Some(template.clone().at(TEMPLATE_TIME)),
            None if config.data.chat => return Err(DataError::NoChatTemplate),
            _ => None,
        };
        Ok(Self {
            tokenizer,
            chat,
            system: config.data.system_prompt.clone(),
        })
    }

    /// The prompt of a problem, asked with the config's system message.
    ///
    /// # Errors
    /// The template or the tokenizer refuses it.
    pub fn render(&self, problem: &Problem) -> Result<Prompt, DataError> {
        self.render_as(problem, self.system.as_deref())
    }

    /// [`PromptRenderer::render`] with another system message, or none.
    ///
    /// # Errors
    /// The template or the tokenizer refuses it.
    pub fn render_as(&self, problem: &Problem, system: Option<&str>) -> Result<Prompt, DataError> {
        let failed = |source| DataError::Render {
            id: problem.id.clone(),
            source,
        };
        let (text, tokens) = match &self.chat {
            Some(template) => {
                let message = |role: &str, content: &str| ChatMessage {
                    role: role.to_owned(),
                    content: content.to_owned(),
                };
                let mut messages = Vec::with_capacity(2);
                messages.extend(system.map(|text| message("system", text)));
                messages.push(message("user", &problem.prompt));
                let text = template.render(&messages, true).map_err(failed)?;
                let tokens = self.tokenizer.encode(&text).map_err(failed)?;
                (text, tokens)
            }
            None => {
                let text = problem.prompt.clone();
                let tokens = self.tokenizer.encode_document(&text).map_err(failed)?;
                (text, tokens)
            }
        };
        Ok(Prompt {
            id: problem.id.clone(),
            text,
            tokens,
            gold: problem.answer.clone(),
        })
    }
}
