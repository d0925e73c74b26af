//! What the handshake asks next: each question is left out where its answer is of no use, and the one behind it is asked
//! instead.

use super::config::Goal;
use super::negotiation::{ClientHandshake, State};
use super::options::{self, InfoCollector};
use super::outcome::{ListReport, Outcome};
use crate::limits;
use crate::option::OptionCode;

impl ClientHandshake {
    pub(super) fn ask(&mut self, option: OptionCode, payload: &[u8]) {
        self.replies = 0;
        self.outgoing
            .extend_from_slice(&options::option(option, payload));
        self.state = State::ReplyHead(option);
    }

    pub(super) fn ask_for_mode(&mut self) {
        if self.config.extended {
            self.ask(OptionCode::ExtendedHeaders, &[]);
        } else {
            self.ask_for_structured_replies();
        }
    }

    pub(super) fn ask_for_structured_replies(&mut self) {
        if self.config.structured {
            self.ask(OptionCode::StructuredReply, &[]);
        } else {
            self.ask_for_goal();
        }
    }

    pub(super) fn ask_for_goal(&mut self) {
        match self.config.goal {
            Goal::List => self.ask(OptionCode::List, &[]),
            Goal::Info => self.ask_for_info(OptionCode::Info),
            Goal::Transmit if self.mode.is_chunked() && self.config.all_contexts => {
                self.ask_for_list_of_contexts();
            }
            Goal::Transmit => self.ask_for_contexts(),
        }
    }

    pub(super) fn ask_for_contexts(&mut self) {
        if self.mode.is_chunked() && !self.config.contexts.is_empty() {
            let payload = options::context_request(&self.config.export, &self.config.contexts);
            self.ask(OptionCode::SetMetaContext, &payload);
        } else {
            self.ask_for_info(OptionCode::Go);
        }
    }

    /// Wants the contexts that the server has listed, as far as they can be selected.
    pub(super) fn choose_listed(&mut self) {
        let mut room = limits::SELECTED_CONTEXTS;
        for listed in std::mem::take(&mut self.contexts) {
            let wanted = &mut self.config.contexts;
            if wanted.contains(&listed.name) {
                continue;
            }
            if wanted.len() >= limits::CONTEXTS || listed.name.len() > room {
                break;
            }
            room -= listed.name.len();
            wanted.push(listed.name);
        }
    }

    pub(super) fn ask_for_list_of_contexts(&mut self) {
        self.contexts.clear();
        // No query at all stands for every context.
        let payload = options::context_request(self.export(), &[]);
        self.ask(OptionCode::ListMetaContext, &payload);
    }

    pub(super) fn ask_for_info(&mut self, option: OptionCode) {
        self.infos = InfoCollector::default();
        let payload = options::info_request(self.export());
        self.ask(option, &payload);
    }

    pub(super) fn ask_for_available_contexts(&mut self) {
        self.contexts.clear();
        if self.mode.is_chunked() {
            self.ask_for_list_of_contexts();
        } else if let Some(info) = self.described.take() {
            self.export_settled(info);
        }
    }

    pub(super) fn ask_by_name(&mut self) {
        let name = self.config.export.clone();
        self.ask(OptionCode::ExportName, name.as_bytes());
        self.state = State::ExportNameReply;
    }

    pub(super) fn ask_about_next(&mut self) {
        if self.pending.is_empty() {
            let report = ListReport {
                exports: std::mem::take(&mut self.listed),
                style: self.style,
                mode: self.mode,
                tls: self.tls,
            };
            self.leave(Outcome::List(report));
        } else {
            self.ask_for_info(OptionCode::Info);
        }
    }
}
